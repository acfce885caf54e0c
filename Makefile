# Two stacks share their import names: one virtual environment each.
STACK ?= openmmlab
PYTHON ?= python3
VENV := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))

.PHONY: setup demo test lint

setup: $(VENV)/ready

$(VENV)/ready: requirements/install.py requirements/build.txt requirements/$(STACK).txt requirements/test.txt setup.py
	$(PYTHON) requirements/install.py --stack $(STACK) --venv $(VENV)

# From nothing to a verified deploy segmentor, with pictures in work_dirs/demo
demo: setup
	$(VENV)/bin/python tools/demo.py

test: setup
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
