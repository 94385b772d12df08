# `make demo` and `make test` do everything on a fresh machine: Python 3.11, make, a package index; a C compiler is used where there is one.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PEERS := $(patsubst tests/peers/%.lock,build/peers/%/.installed,$(wildcard tests/peers/*.lock))
WORLD ?= synthetic
LOGS ?=
DAYS ?= 4
WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile

export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_HTTP_TIMEOUT ?= 180
export DO_NOT_TRACK := 1

.PHONY: help install demo test test-all bench peers lint lock clean

help:
	@echo "make demo      four simulated days through the whole loop (WORLD=kuairand LOGS=folder for real logs)"
	@echo "make test      the tests, no skips; make test-all adds the slow ones and the real slice"
	@echo "make peers     the libraries ours is compared with, each in an environment below build/peers"
	@echo "make bench     benchmarks, written as JSON under build/bench"
	@echo "make lint      ruff, sqlfluff, pip-audit"
	@echo "make lock      resolve requirements.lock anew; make clean removes what the targets made"

install: $(READY)

$(READY): requirements.lock pyproject.toml training/policies/fast/kernels.c
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv==$$(sed -n 's/^uv==//p' requirements.lock)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(READY)

demo: $(READY)
	MTF__WORLD__BUILD=$(WORLD) $(if $(LOGS),MTF__WORLD__LOGS=$(abspath $(LOGS))) \
		$(BIN)/mtf demo --days $(DAYS)

test: $(READY)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not real and not peers"

peers: $(PEERS)

# a peer is a lock file made by: uv pip compile NAME.in --python-version 3.11 --no-annotate --no-header
build/peers/%/.installed: tests/peers/%.lock | $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python -r $<
	touch $@

test-all: $(READY) $(PEERS)
	$(BIN)/python -m pytest $(WORKERS)

bench: $(READY) $(PEERS)
	$(BIN)/python -m tests.benchmarks --out build/bench
	$(BIN)/python -m tests.benchmarks.serving --out build/bench

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd dbt_project && ../$(BIN)/sqlfluff lint models tests
	$(BIN)/pip-audit -r requirements.lock --no-deps --disable-pip

lock:  # torch is left open first, so that a CPU build in UV_FIND_LINKS is preferred to one with CUDA
	sed -i "/^torch==/d" requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-annotate --no-header \
		--no-emit-find-links -o requirements.lock
	sed -i 's/^torch==\([0-9.]*\)+.*/torch==\1/' requirements.lock

clean:
	rm -rf data build dbt_project/target dbt_project/logs .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
