# What a stranger types: `make run` (see it work), `make test`, `make bench`. All need root: containers do.
#
# make venv         .venv with the package and its development tools
# make check        style, types, floors of the house, dependencies, spelling
# make deps         Debian packages that the tests and the bench need, installed when missing
# make test         all tests; PYTEST_FLAGS="-k name -x" narrows them
# make test-vm      only those in a virtual machine (cgroup v2, systemd, AppArmor, reboot, power cut); part of test
# make run          the bundled hello-world in a private daemon; needs Python and nothing else
# make bench        side by side with dockerd; make bench-quick with fewer repetitions
# make soak         2,000 containers while daemon and shims are killed; the same calls by docker-py over and over
# make density      500 idle containers with health checks beside dockerd
# make fuzz         parsers of hostile bytes for SECONDS=600 in all; the corpus grows in tests/fuzz/corpus
# make protections  each protection taken away in a copy of the tree: its tests must fail
# make bench-containers  looking inside, moving files, density; make bench-images  registries (needs 5 GB of disk)
# make bench-net    streams, requests, thousands of ports, names
# make names        200 containers started at once, every name asked from every one
# make soak-gc      random work on the image store, with kills of the daemon, for MINUTES=30
# make pull-kills  a pull that daemon, registry and network break off ten times: what is downloaded twice?
# make compatibility  docs/compatibility.md from tests/parity/differences.toml
# make clean        remove .venv and the tools' caches

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?=
TESTS_parts := tests/unit tests/contract tests/kernel tests/fuzz tests/vm
TESTS_whole := tests/e2e tests/parity
TESTS_vm := tests/vm
BENCH_FLAGS ?=
SOAK_FLAGS ?=
SECONDS ?= 600
MINUTES ?= 30

# Tests drive the official client and compare with Debian's dockerd; images are made from Debian's packages.
DEBIAN_PACKAGES := docker.io runc crun nftables iptables iproute2 busybox-static procps util-linux \
  docker-registry skopeo podman containerd criu btrfs-progs fuse-overlayfs erofs-utils e2fsprogs dnsperf \
  openssl qemu-system-x86 curl wrk iperf3

.PHONY: venv check deps names test test-parts test-whole test-vm run bench bench-quick bench-containers bench-images bench-net bench-registry soak soak-gc pull-kills density fuzz protections compatibility clean
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

# Two runs side by side, since most tests wait: their dots come mixed, each ends with its own summary.
test: venv deps
	@$(MAKE) --no-print-directory --jobs=2 test-parts test-whole

# With PYTEST_FLAGS it is no failure that one of the two has no such test (pytest's exit status 5).
test-parts test-whole test-vm: test-%: venv deps
	$(BIN)/python -m pytest $(TESTS_$*) $(PYTEST_FLAGS) || { test $$? = 5 && test -n "$(PYTEST_FLAGS)"; }

run: $(VENV)/.package
	@tools/hello.sh $(BIN)

bench: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m side_by_side $(BENCH_FLAGS)

bench-quick: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m side_by_side --quick $(BENCH_FLAGS)

soak: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m soak $(SOAK_FLAGS)
	PYTHONPATH=src:tests:bench $(BIN)/python -m soak_sdk

density: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m density $(BENCH_FLAGS)

fuzz: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	PYTHONPATH=tests/fuzz $(BIN)/python -m fuzz_long --seconds $(SECONDS)

protections: venv deps
	$(BIN)/python tools/remove_protection.py

bench-images: | bench-registry

bench-containers bench-images bench-net bench-registry: bench-%: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m side_by_side --group $* $(BENCH_FLAGS)

names: venv deps
	DRAY_TEST_CONTAINERS=200 $(BIN)/python -m pytest tests/e2e/test_e2e_many_names.py $(PYTEST_FLAGS)

soak-gc: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m gc_soak --minutes $(MINUTES) $(SOAK_FLAGS)

pull-kills: venv deps
	PYTHONPATH=src:tests:bench $(BIN)/python -m pull_kills $(BENCH_FLAGS)

compatibility: venv
	$(BIN)/python tools/compatibility.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
