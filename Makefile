# Two stacks share their import names: one virtual environment each.
STACK ?= openmmlab
PYTHON ?= python3
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

test: setup peers
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
