# make demo   makes .venv, installs, runs the whole recipe on a tiny model on the CPU and shows the answers
# make test   makes .venv, installs, runs the tests           make unit   only the quick ones        make slow   only the slow ones
# make lint   ruff and mypy              make docs   the site, in site/           make release-check   a release, tried in fresh environments
PYTHON ?= python3
VENV ?= .venv
BIN = $(abspath $(VENV))/bin

.PHONY: install demo test unit slow lint docs release-check
$(VENV)/.installed: pyproject.toml hatch_build.py
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -e '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/wulewule demo

test: install
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

unit: install
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest --ignore tests/e2e

slow: install
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: export NO_MKDOCS_2_WARNING = 1
docs: install
	$(BIN)/mkdocs build --strict --site-dir site

release-check: install
	$(BIN)/cffconvert --validate -i CITATION.cff
	$(BIN)/python scripts/release_check.py
