# Two stacks share their import names: one virtual environment each.
STACK ?= openmmlab
PYTHON ?= python3
# Processes that run tests, the tests of a file in one of them
WORKERS ?= 2
OLDEST_TESTS := tests/convert tests/deploy tests/files tests/openmmlab tests/training tests/commands/test_convert.py \
	tests/test_archs.py tests/test_backbone.py tests/test_block.py tests/test_branch_sum.py tests/test_compile.py \
	tests/test_environment.py tests/test_kept.py \
	tests/test_fusion.py tests/test_layouts.py tests/test_pretrained.py tests/test_stages.py tests/test_wheel.py
VENV := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))

.PHONY: setup peers demo test lint

setup: $(VENV)/ready

$(VENV)/ready: requirements/install.py $(wildcard requirements/*.txt) setup.py
	$(PYTHON) requirements/install.py --stack $(STACK) --venv $(VENV)

# torchvision and what needs it, for tests: sees the packages of $(VENV) and cannot replace them
peers: $(VENV)-peers/ready

$(VENV)-peers/ready: $(VENV)/ready requirements/peers.py requirements/peers.txt requirements/$(STACK)_classification.txt
	$(PYTHON) requirements/peers.py --stack $(STACK) --venv $(VENV)

# From nothing to a verified deploy segmentor and detector, with pictures in work_dirs/demo
demo: setup
	$(VENV)/bin/python tools/demo.py

# Where torch is old there are no engines, and no newer libraries to compare with
test: setup $(if $(filter oldest,$(STACK)),,peers)
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(if $(filter oldest,$(STACK)),-m "not peers" $(OLDEST_TESTS)) $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
