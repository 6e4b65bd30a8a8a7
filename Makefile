# Every target first sets up what it needs (.ci/setup, which does little if everything is there already).
#   make test ARGS='-k latency -x'              further arguments for pytest; '-n 0 --pdb' to debug
#   make test NETPOLL_GO_VERSIONS='1.24.11'     the Go versions that services are built with, or "all"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all test-kernels test-kernels-short test-containers test-wild check docs bench clean

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
ARGS ?=

# tests/conftest.py takes these from .tools/go-<version>/, where .ci/setup puts them.
NETPOLL_GO_VERSIONS ?= 1.19 1.21.13 1.27.3
export NETPOLL_GO_VERSIONS

# Two, because most tests mainly wait for processes; a file's tests share services and agents.
WORKERS := -n 2 --dist loadfile

# How often a failing test is repeated: never, except in .ci/run.
REPEATS ?= 0
REPEAT := $(if $(filter-out 0,$(REPEATS)),-p rerunfailures --reruns $(REPEATS))

# .tools/go exists only where .ci/setup found no usable Go on the machine.
export PATH := $(CURDIR)/.tools/go/bin:$(PATH)
# Tests name the toolchain they build with: go.mod must not swap it for a downloaded one, and a
# GOROOT from the user's shell would pair one version's compiler with another's library.
export GOTOOLCHAIN := local
unexport GOROOT

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## see a healthy Go service pass, and wasteful ones caught
	@.ci/setup demo
	@printf '\n--- example_project, healthy services: every test should pass\n\n'
	@$(PYTEST) -p no:asyncio example_project $(ARGS)
	@printf '\n--- example_project, wasteful services: these tests should fail\n\n'
	@status=0; $(PYTEST) -p no:asyncio example_project --wasteful $(ARGS) || status=$$?; \
	case $$status in \
	1) printf '\ndemo: caught, as it should be.\n' ;; \
	0) printf '\ndemo: the wasteful services passed, but should have failed.\n' >&2; exit 1 ;; \
	*) printf '\ndemo: pytest stopped with exit code %s instead of judging the services.\n' $$status >&2; \
	   exit $$status ;; \
	esac

test: ## run all tests, with the oldest, an older and the newest supported Go
	@.ci/setup test
	@$(PYTEST) tests $(WORKERS) $(REPEAT) $(ARGS)

test-all: export NETPOLL_GO_VERSIONS = all
test-all: ## run all tests, with every supported Go
	@.ci/setup test
	@$(PYTEST) tests $(WORKERS) $(REPEAT) $(ARGS)

test-kernels: ## run the installed plugin on other kernels and on arm64, emulated
	@.ci/setup kernels
	@$(PYTHON) tests/kernels/run.py $(ARGS)

test-kernels-short: ## the part of it that CI runs: Linux 5.10 and 6.1, and arm64
	@.ci/setup kernels
	@$(PYTHON) tests/kernels/run.py --short $(ARGS)

test-containers: export NETPOLL_TEST_CONTAINERS = 1
test-containers: ## run what the docs say about containers, with podman and docker
	@.ci/setup containers
	@$(PYTEST) tests/bpf/test_containers.py tests/bpf/test_ci_images.py $(ARGS)

test-wild: ## measure well-known Go servers under load; downloads them
	@.ci/setup wild
	@$(PYTHON) tests/bpf/wild/wild.py $(ARGS)

check: ## lint, formatting, types
	@.ci/setup check
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@.venv/bin/clang-format --dry-run --Werror bpf/*.[ch]
	@$(PYTHON) -m mypy --strict
	@$(PYTHON) -m mypy --config-file .ci/mypy-agent.ini

docs: ## write the generated parts of docs/, and the JSON Schema
	@.ci/setup check
	@PYTHONPATH=. $(PYTHON) .ci/docs.py

bench: ## measure what measuring costs
	@.ci/setup bench
	@$(PYTHON) tests/bench/bench.py $(ARGS)

clean: ## remove what set-up, tests and builds left behind
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find bpf example_project pytest_netpoll tests -name __pycache__ -prune -exec rm -rf {} +
