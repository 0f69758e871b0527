# Two commands do all set-up: `make demo` runs the embedded default, `make test` passes the quick tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Set where a CUDA build of torch is wanted: make CONSTRAINTS= demo
CONSTRAINTS ?= -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

.PHONY: demo test test-slow check docs audit faults bench clean

demo: $(VENV)/.installed
	$(BIN)/penchant demo --output demo

# Under 8 minutes on two free cores, the ten slowest tests listed at the end.
test: check docs
	$(PYTEST) -m "not slow"

# The rest: whole pipelines, kills and other faults, new interpreters, compilers, scripts of benchmarks.
test-slow: $(VENV)/.installed
	$(PYTEST) -m slow

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site of the documentation in build/site, with the API reference; a warning, as of a missing page, is an error.
docs: $(VENV)/.installed
	$(BIN)/python docs/pages.py
	$(BIN)/zensical build --strict --clean

# Known vulnerabilities of the pinned packages; says so where their database cannot be reached.
audit:
	$(PYTHON) .ci/audit.py

# Under 20 minutes: kills, full disks, signals, locks and damaged files; KILLS=20 for fewer kills.
KILLS ?= 200
faults: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --kills $(KILLS)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev,docs]'
	touch $@

# Hours: speed and memory beside peers, on this machine's CPU. Installs TRL in an environment of its own the first time.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/speed/run.py cpu --out benchmarks/results

clean:
	rm -rf $(VENV) .venv-audit build demo
