# The commands that the README names. Everything else is in docs/.
SHELL := /bin/sh
VENV := .venv
PYTHON := $(VENV)/bin/python
# The engine of this checkout, beside the system's: nothing outside of it is touched.
export MESHD_ENGINE_ROOT ?= $(CURDIR)/.cache/engine

.PHONY: help demo test test-unit test-wire test-lab lint engine config bench-memory clean

help:
	@echo "make demo          start a node here and chat with it (ARGS=--once to end by itself)"
	@echo "make test          linters, types and every tier of tests that can run here"
	@echo "make test-unit     seconds: the pure core"
	@echo "make test-wire     a minute: real engines and sockets on this machine"
	@echo "make test-lab      minutes: booted systemd containers (root on Debian)"
	@echo "make engine        get llama.cpp into .cache/engine"
	@echo "make config        write etc/mesh.yaml and docs/configuration.md from the schema"
	@echo "make bench-memory  predicted against real memory, docs/memory.md"

demo: $(VENV)/.base
	@$(VENV)/bin/meshd demo $(ARGS)

test: $(VENV)/.dev engine
	@$(PYTHON) -m pytest tests $(ARGS)

test-unit: $(VENV)/.dev
	@$(PYTHON) -m pytest tests/unit $(ARGS)

test-wire: $(VENV)/.dev engine
	@$(PYTHON) -m pytest tests/wire $(ARGS)

test-lab: $(VENV)/.dev
	@$(PYTHON) -m pytest tests/lab $(ARGS)

lint: $(VENV)/.dev
	@$(PYTHON) -m pytest tests/unit/test_linters.py $(ARGS)

engine: $(VENV)/.base
	@$(VENV)/bin/meshd engine install

config: $(VENV)/.dev
	@$(PYTHON) -m meshd.config.reference

bench-memory: $(VENV)/.dev engine
	@$(PYTHON) -m tools.memory_table

$(VENV)/.base: pyproject.toml tools/bootstrap
	@tools/bootstrap $(VENV) '.[engine]'
	@touch $@

$(VENV)/.dev: pyproject.toml tools/bootstrap
	@tools/bootstrap $(VENV) '.[dev]'
	@touch $@ $(VENV)/.base

clean:
	rm -rf $(VENV) .cache
