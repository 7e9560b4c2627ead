# The first `make book`, `make test` or `make train` sets everything up in .venv; later ones start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help book test test-all test-edge check check-released train notebooks clean

help:
	@echo "make book       build the site and say where its index.html is"
	@echo "make test       linters, types, unit tests, every chapter re-executed and compared"
	@echo "make test-all   the same with the slow tests"
	@echo "make test-edge  build llama.cpp (minutes of all cores) and run exported files in it"
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

# GCC 12.2 cannot compile llama.cpp's code for AMX: there it is built without.
test-edge: $(READY)
	@if grep -q amx_tile /proc/cpuinfo 2>/dev/null && cc -dumpfullversion | grep -q '^12[.]2'; then \
		echo "GCC 12.2 on a CPU with AMX: llama.cpp is built without AMX"; \
		export CFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; export CXXFLAGS="$$CFLAGS"; \
	fi; \
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --no-binary llama-cpp-python -r requirements-edge.lock
	$(BIN)/pytest tests/edge

train: $(READY)
	$(BIN)/slm2 train tiny
	@echo 'Next: source $(BIN)/activate; slm2 generate runs/tiny --prompt "Der Zug kam"'

notebooks: $(READY)
	$(BIN)/python book/notebooks.py run

clean:
	rm -rf book/_build runs
