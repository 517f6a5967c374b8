# Every target makes its own virtual environment if there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench

.PHONY: test test-deep lint demo bench bench-short clean
$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

# Also what takes long: installations into fresh environments, the demo at its full length without cached kernels; and
# properties on other examples than those of every run.
test-deep: test
	$(BIN)/python -m pytest -m "deep or hypothesis" --hypothesis-profile=explore

demo: $(VENV)/ready
	$(BIN)/hardening demo

# Peers and their dependencies live apart from the tests. Results, as JSON: .benchmarks/
$(BENCH)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet -e '.[bench]'
	touch $@

# What exceeds its budget is measured once more in a new process, whose memory lies elsewhere: that alone moves the
# shortest calls by two per cent. What ended in any other way than by a budget is not tried again.
MEASURE = $(BENCH)/bin/python -m pytest benchmarks --benchmark-quiet

bench: $(BENCH)/ready
	mkdir -p .benchmarks
	$(MEASURE) --benchmark-json=.benchmarks/long.json || \
	{ [ $$? -eq 1 ] && $(MEASURE) --last-failed --last-failed-no-failures=none; }

bench-short: $(BENCH)/ready
	mkdir -p .benchmarks
	$(MEASURE) --short --benchmark-json=.benchmarks/short.json || \
	{ [ $$? -eq 1 ] && $(MEASURE) --short --last-failed --last-failed-no-failures=none; }

clean:
	rm -rf $(VENV) $(BENCH) .benchmarks build *.egg-info
