# `make demo` and `make test` do everything on a fresh machine: Python 3.11 to 3.13, make, a package index; a C compiler
# is used where there is one.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
SCALE := $(VENV)/.scale
PEERS := $(patsubst tests/peers/%.lock,build/peers/%/.installed,$(wildcard tests/peers/*.lock))
WORLD ?= synthetic
LOGS ?=
DAYS ?= 4
PUBLISH ?=
WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile

EXPORT := $(BIN)/uv export --quiet --frozen --all-extras --no-hashes --no-emit-project

export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_HTTP_TIMEOUT ?= 180
export DO_NOT_TRACK := 1
# Images often set it, and then each of the hundreds of processes of a day or of the tests would compile again all that
# it imports: as much work as its own.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-all scale test-scale bench outside peers lint lint-sql types docs audit lock clean

help:
	@echo "make demo      four simulated days through the whole loop (WORLD=kuairand LOGS=folder for real logs)"
	@echo "make test      the tests, no skips; make test-all adds the slow ones and the real slice"
	@echo "make scale     Spark and Celery's engines, into the same environment; make test-scale runs their tests"
	@echo "make peers     the libraries ours is compared with, each in an environment below build/peers"
	@echo "make bench     benchmarks, as JSON in build/bench; PUBLISH=--publish also renews docs/results"
	@echo "make outside   the pool on RecSim's users, beside constants and d3rlpy's BCQ; one of the benchmarks"
	@echo "make lint      ruff, sqlfluff, mypy, and the docs with their links"
	@echo "make types     mypy alone; make docs the documentation as a site, build/site"
	@echo "make audit     known vulnerabilities of the locked packages"
	@echo "make lock      resolve uv.lock anew; make clean removes what the targets made"

install: $(READY)

# uv.lock holds one version of every package for every Python. It is given as constraints, not synced, so that a
# build of PyTorch for the CPU alone in UV_FIND_LINKS is taken where there is one, without CUDA's packages.
$(READY): uv.lock pyproject.toml training/policies/fast/kernels.c
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "This needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv==$$(sed -n '/^name = "uv"$$/,/^$$/s/^version = "\(.*\)"/\1/p' uv.lock)"
	mkdir -p build
	$(EXPORT) --output-file build/constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint build/constraints.txt \
		--requirements pyproject.toml --extra dev
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(READY)

demo: $(READY)
	MTF__WORLD__BUILD=$(WORLD) $(if $(LOGS),MTF__WORLD__LOGS=$(abspath $(LOGS))) \
		$(BIN)/mtf demo --days $(DAYS)

test: $(READY)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not real and not peers and not scale"

# The engines of more than one machine: a second stamp, so that what the default installs stays what it is.
scale: $(SCALE)

$(SCALE): $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint build/constraints.txt \
		--requirements pyproject.toml --extra scale
	touch $(SCALE)

test-scale: $(SCALE)
	$(BIN)/python -m pytest -m scale

peers: $(PEERS)

# a peer is a lock file made by: uv pip compile NAME.in --python-version 3.11 --no-annotate --no-header
build/peers/%/.installed: tests/peers/%.lock | $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python -r $<
	touch $@

test-all: $(READY) $(PEERS) $(SCALE)
	$(BIN)/python -m pytest $(WORKERS)

bench: $(READY) $(PEERS)
	$(BIN)/python -m tests.benchmarks $(PUBLISH)
	$(BIN)/python -m tests.benchmarks.serving $(PUBLISH)

outside: $(READY) $(PEERS)
	$(BIN)/python -m tests.benchmarks outside $(PUBLISH)

lint: $(READY) lint-sql types docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

lint-sql: $(READY)
	cd dbt_project && ../$(BIN)/sqlfluff lint --disable-progress-bar models tests

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit: $(READY)  # known vulnerabilities of what is locked; asks the network
	$(EXPORT) --output-file build/constraints.txt
	$(BIN)/pip-audit -r build/constraints.txt --no-deps --disable-pip

lock:
	env -u UV_FIND_LINKS $(BIN)/uv lock --upgrade

clean:
	rm -rf data build dbt_project/target dbt_project/logs .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
