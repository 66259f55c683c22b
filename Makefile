# make test   makes .venv, installs, runs every test        make lint   ruff and mypy
PYTHON ?= python3
VENV ?= .venv

.PHONY: install test lint
$(VENV)/.installed: pyproject.toml hatch_build.py
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -e '.[dev]'
	touch $@

install: $(VENV)/.installed

test: install
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m pytest

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
