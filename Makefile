# Everything here may be repeated. Root rights are needed for packages and for the lab; sudo is used when you are not root.

PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := packaging/debian-packages packaging/debian-packages-lab
RUNS := 5
MINUTES := 30
# Test files at a time: a lab waits for its guests often enough for three of them to share two cores. tests/conftest.py says in what order.
WORKERS := 3

.PHONY: demo demo-two-hosts test thorough proof bench check lint types contracts unit system soak packages packages-test packages-bench clean

demo: packages $(VENV)/runtime  ## run the main job before your eyes
	$(AS_ROOT) $(BIN)/understudy demo

demo-two-hosts: packages $(VENV)/runtime  ## the same with a proxy on each host, TLS, and a 100 Mbit/s line
	$(AS_ROOT) $(BIN)/understudy demo --two-hosts

test: packages-test $(VENV)/development check  ## lint, types, import contracts and all tests
	$(AS_ROOT) $(BIN)/python -m pytest tests/unit tests/contract tests/vsphere tests/lab tests/system -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 20

bench: packages-bench $(VENV)/development  ## measure against nbdcopy and virtnbdbackup
	$(AS_ROOT) $(BIN)/python -m bench --runs $(RUNS) --json bench-result.json

check: lint types contracts

lint: $(VENV)/development
	$(BIN)/ruff check .

types: $(VENV)/development
	$(BIN)/mypy

contracts: $(VENV)/development
	$(BIN)/lint-imports

unit: packages-test $(VENV)/development  ## the tests that need no lab
	$(AS_ROOT) $(BIN)/python -m pytest tests/unit tests/contract tests/vsphere

system: packages-test $(VENV)/development  ## the tests on real libvirt hosts
	$(AS_ROOT) $(BIN)/python -m pytest tests/lab tests/system

proof: packages-test $(VENV)/development  ## a Debian guest with a database under load, on a machine that does nothing else
	$(AS_ROOT) $(BIN)/python -m pytest tests/proof --durations 8

thorough: packages-test $(VENV)/development  ## the crash matrix at all its places, also those that make test leaves out
	$(AS_ROOT) $(BIN)/python -m pytest -m "" tests/system/test_matrix*.py tests/vsphere/test_matrix*.py -n $(WORKERS) --dist loadfile

soak: packages-test $(VENV)/development  ## random sessions with faults for MINUTES, from SEED if it is given
	$(AS_ROOT) $(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

packages:
	packaging/install-packages $(PACKAGES)

packages-test:
	packaging/install-packages $(PACKAGES) packaging/debian-packages-test
	$(AS_ROOT) packaging/fetch-vddk-plugin

packages-bench:
	packaging/install-packages $(PACKAGES) packaging/debian-packages-bench

# libvirt and libnbd come from the distribution, so the environment sees its Python packages.
$(VENV)/pyvenv.cfg: | packages
	$(PYTHON) -m venv --system-site-packages $(VENV)

$(VENV)/runtime: $(VENV)/pyvenv.cfg requirements.txt pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q src
	touch $@

$(VENV)/development: $(VENV)/runtime requirements-dev.txt
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
