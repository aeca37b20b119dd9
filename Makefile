# The commands that the README names. Everything else is in docs/.
SHELL := /bin/sh
VENV := .venv
PYTHON := $(VENV)/bin/python
# The engine of this checkout, beside the system's: nothing outside of it is touched.
export MESHD_ENGINE_ROOT ?= $(CURDIR)/.cache/engine

.PHONY: help demo test test-unit test-wire test-lab lint sim engine config bench-memory \
	bench-mesh bench-gateway bench-routing bench-plan bench-clients bench-split bench-gpu bench-guard \
	bench-experts clean

help:
	@echo "make demo          start a node here and chat with it (ARGS=--once to end by itself)"
	@echo "make demo NODES=3  a mesh on this machine: two models, one endpoint; a node is killed"
	@echo "make demo EXPERTS=1  a mixture of experts from shards on three nodes; one is killed"
	@echo "make demo SPLIT=1  a model split over two of three nodes on this machine; one is killed"
	@echo "make test          linters, types and every tier of tests that can run here"
	@echo "make test-unit     seconds: the pure core"
	@echo "make test-wire     a minute: real engines and sockets on this machine"
	@echo "make test-lab      minutes: booted systemd containers (root on Debian)"
	@echo "make engine        get llama.cpp into .cache/engine"
	@echo "make config        write etc/mesh.yaml and docs/configuration.md from the schema"
	@echo "make sim SEEDS=20  a thousand nodes in a simulation with a virtual clock"
	@echo "make bench-mesh    membership beside Serf: detection, convergence, cost (15 min)"
	@echo "make bench-gateway our gateway beside others, 10 min; ARGS=--quick for a minute or two"
	@echo "make bench-routing prefix hits and balance of ways to choose a replica, half a minute"
	@echo "make bench-plan    how long a node plans in a mesh of a thousand, half a minute"
	@echo "make bench-clients what a client costs the node that it follows"
	@echo "make bench-split   predicted against real speed of splits, over links with delay (4 min)"
	@echo "make bench-gpu     predicted against real speed of a model's ways on this GPU (3 min)"
	@echo "make bench-guard   what the guards of a split cost, and rude callers at their door (2 min)"
	@echo "make bench-load    loads of a split with a seeded tensor cache and without, 2 minutes"
	@echo "make bench-experts what shards of a mixture of experts keep, by how they are chosen (6 min)"
	@echo "make bench-memory  predicted against real memory, docs/memory.md"

demo: $(VENV)/.base
	@$(VENV)/bin/meshd demo $(if $(NODES),--nodes $(NODES)) $(if $(SPLIT),--split) \
		$(if $(EXPERTS),--experts) $(ARGS)

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

bench-split: $(VENV)/.dev engine
	@$(PYTHON) -m tools.bench_split $(ARGS)

sim: $(VENV)/.dev
	@$(PYTHON) -m tests.sim.run --seeds $(or $(SEEDS),20) $(ARGS)

bench-gpu: $(VENV)/.dev engine
	@$(PYTHON) -m tools.bench_gpu $(ARGS)

bench-mesh: $(VENV)/.dev
	@$(PYTHON) -m tools.bench_mesh $(ARGS)

# The others are fetched into .cache/bench, nothing is installed.
bench-gateway: $(VENV)/.dev
	@$(PYTHON) -m tools.bench_gateway $(ARGS)

bench-routing: $(VENV)/.dev
	@$(PYTHON) -m tools.bench_routing $(ARGS)

bench-plan: $(VENV)/.dev
	@$(PYTHON) -m tools.bench_plan $(ARGS)

bench-clients: $(VENV)/.dev
	@$(PYTHON) -m tools.bench_clients $(ARGS)

bench-guard: $(VENV)/.dev engine
	@$(PYTHON) -m tools.bench_guard $(ARGS)

bench-load: $(VENV)/.dev engine
	@$(PYTHON) -m tools.bench_load $(ARGS)

$(VENV)/.base: pyproject.toml tools/bootstrap
	@tools/bootstrap $(VENV) '.[engine]'
	@touch $@

$(VENV)/.dev: pyproject.toml tools/bootstrap
	@tools/bootstrap $(VENV) '.[dev]'
	@touch $@ $(VENV)/.base

bench-experts: $(VENV)/.dev engine
	@$(PYTHON) -m tools.bench_experts $(ARGS)

clean:
	rm -rf $(VENV) .cache
