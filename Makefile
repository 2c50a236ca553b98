# What a stranger types: `make run` (see it work), `make test`, `make bench`. All need root: containers do.
#
# make venv         .venv with the package and its development tools
# make check        style, types, floors of the house, dependencies, spelling
# make deps         Debian packages that the tests and the bench need, installed when missing
# make test         all tests; PYTEST_FLAGS="-k name -x" narrows them
# make test-vm      only those in a virtual machine (cgroup v2, systemd, AppArmor, reboot, power cut); part of test
# make run          the bundled hello-world in a private daemon; needs Python and nothing else
# make bench        side by side with dockerd; make bench-quick with fewer repetitions
# make bench-containers  looking inside, moving files, density; make bench-images  registries (needs 5 GB of disk)
# make bench-net    streams, requests, thousands of ports, names
# make names        200 containers started at once, every name asked from every one
# make soak-gc      random work on the image store, with kills of the daemon, for MINUTES=30
# make compatibility  docs/compatibility.md from tests/parity/differences.toml
# make clean        remove .venv and the tools' caches

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?=
BENCH_FLAGS ?=
SOAK_FLAGS ?=
MINUTES ?= 30

# Tests drive the official client and compare with Debian's dockerd; images are made from Debian's packages.
DEBIAN_PACKAGES := docker.io runc crun nftables iptables iproute2 busybox-static procps util-linux \
  docker-registry skopeo podman containerd criu btrfs-progs fuse-overlayfs erofs-utils e2fsprogs dnsperf \
  openssl qemu-system-x86 curl wrk iperf3

.PHONY: venv check deps names test test-vm run bench bench-quick bench-containers bench-images bench-net soak-gc compatibility clean
.DELETE_ON_ERROR:

venv: $(VENV)/.dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "dray needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "this Python cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# Dependency groups need pip 25.1.
$(VENV)/.dev: pyproject.toml $(VENV)/.package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/codespell

deps:
	@tools/install-debian-packages.sh $(DEBIAN_PACKAGES)

test: venv deps
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-vm: venv deps
	$(BIN)/python -m pytest tests/vm $(PYTEST_FLAGS)

run: $(VENV)/.package
	@tools/hello.sh $(BIN)

bench: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m side_by_side $(BENCH_FLAGS)

bench-quick: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m side_by_side --quick $(BENCH_FLAGS)

bench-containers bench-images bench-net: bench-%: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m side_by_side --group $* $(BENCH_FLAGS)

names: venv deps
	DRAY_TEST_CONTAINERS=200 $(BIN)/python -m pytest tests/e2e/test_e2e_many_names.py $(PYTEST_FLAGS)

soak-gc: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m gc_soak --minutes $(MINUTES) $(SOAK_FLAGS)

compatibility: venv
	$(BIN)/python tools/compatibility.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
