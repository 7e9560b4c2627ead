# The first `make book`, `make test` or `make train` sets everything up in .venv; later ones start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help book test test-all check check-released train notebooks clean

help:
	@echo "make book       build the site and say where its index.html is"
	@echo "make test       linters, types, unit tests, every chapter re-executed and compared"
	@echo "make test-all   the same with the slow tests"
	@echo "make check      linters and types only"
	@echo "make check-released  the released weights against transformers (network, 7 GB, 10 GB of memory)"
	@echo "make train      train the tiny model on the embedded corpus and let it write"
	@echo "make notebooks  execute every chapter again and store the outputs"

# Everything is installed at the exact versions of the lock file; the package itself is editable.
$(READY): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

book: $(READY)
	$(BIN)/jupyter-book build book/ -W -n --keep-going
	@echo "The book: $(CURDIR)/book/_build/html/index.html"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

test: check
	$(BIN)/pytest -m "not slow and not gpu"
	$(BIN)/pytest --nbval book/

test-all: check
	$(BIN)/pytest -m "not gpu"
	$(BIN)/pytest --nbval book/

check-released: $(READY)
	$(BIN)/python benchmarks/check_released.py

train: $(READY)
	$(BIN)/slm2 train tiny
	@echo 'Next: source $(BIN)/activate; slm2 generate runs/tiny --prompt "Der Zug kam"'

notebooks: $(READY)
	$(BIN)/python book/notebooks.py run

clean:
	rm -rf book/_build runs
