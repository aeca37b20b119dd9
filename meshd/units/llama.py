"""From a decision to the llama-server that carries it out. Pure: the same in, the same out.

Everything that the planner decided is said outright (``--fit off``), so that the engine never
rewrites the plan behind it.
"""

from __future__ import annotations

from meshd.config.settings import Limit
from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.instance import instance_name
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Hardware
from meshd.paths import Paths
from meshd.planner.layout import RAM
from meshd.planner.needs import micro_batch
from meshd.planner.place import prompt_cache_bytes
from meshd.planner.plan import Decision, Layout, Strategy
from meshd.units.dialect import Dialect, Flag
from meshd.units.gpus import gpu_access, gpu_devices
from meshd.units.intents import Intent
from meshd.units.spec import TERM, EngineKind, EngineSpec
from meshd.units.split_layout import split_flags

MIB = 1024**2
GIB = 1024**3

# Measured of a llama-server without a GPU: 15 MiB of its own, 17 MiB of libraries.
_PROGRAM_BYTES = 128 * MIB


def llama_spec(
    decision: Decision,
    facts: GgufFacts,
    build: EngineBuild,
    hardware: Hardware,
    paths: Paths,
    limit: Limit | None = None,
) -> EngineSpec:
    """The engine for one served decision.

    :param limit: what engines of this node may use at most.
    :raises UserError: the build lacks llama-server, or a flag or backend that the decision needs.
    """
    server = build.binary("llama-server")
    if server is None:
        raise UserError("the engine has no llama-server", hint="meshd engine install")
    name = instance_name(decision.model)
    dialect = Dialect.from_help(
        build.help_text, build=f"llama-server {build.version or build.build}"
    )
    pipeline = decision.strategy is Strategy.PIPELINE
    if pipeline and "RPC" not in build.backends:
        raise UserError(
            "the engine has no backend for other nodes' devices (RPC)",
            hint="apt install libggml0-backend-rpc, or meshd engine install",
        )
    devices, environment = gpu_devices(decision.layout.gpus, hardware, build)
    if pipeline:
        environment = tuple(sorted((*environment, (TERM, str(decision.term)))))
    # Prompts to keep would have to be fetched from the members, over the network.
    cache_bytes = 0 if pipeline else prompt_cache_bytes(hardware.ram.total_bytes, limit)
    flags = [
        Flag(Intent.MODEL, facts.files[0]),
        Flag(Intent.ALIAS, decision.model),
        Flag(Intent.HOST, str(paths.engine_socket(name))),
        Flag(Intent.CONTEXT, str(decision.context * decision.slots)),
        Flag(Intent.SLOTS, str(decision.slots)),
        Flag(Intent.KV_UNIFIED, "off"),
        *_batch_flags(facts, decision.context),
        Flag(Intent.FIT, "off"),
        *_placement_flags(decision, facts, devices),
        Flag(Intent.FLASH_ATTENTION, "auto"),
        Flag(Intent.LOAD_MODE, "mmap"),
        Flag(Intent.THREADS, str(max(1, hardware.cpu.physical_cores))),
        Flag(Intent.CACHE_RAM, str(cache_bytes // MIB), optional=True),
        *_purpose_flags(facts),
        Flag(Intent.METRICS, "on", optional=True),
        Flag(Intent.SLOTS_ENDPOINT, "on", optional=True),
        Flag(Intent.UI, "off", optional=True),
        Flag(Intent.OFFLINE, "on", optional=True),
        Flag(Intent.LOG_COLORS, "off", optional=True),
        Flag(Intent.LOG_TIMESTAMPS, "off", optional=True),
    ]
    return EngineSpec(
        kind=EngineKind.LLAMA,
        name=name,
        model=decision.model,
        argv=(server.path, *dialect.render(flags)),
        environment=environment,
        reads=facts.files,
        gpu=gpu_access(decision.layout.gpus, hardware),
        memory_max_bytes=_memory_max_bytes(decision, cache_bytes, limit),
        load_bytes=facts.file_bytes,
    )


def _batch_flags(facts: GgufFacts, context: int) -> list[Flag]:
    size = str(micro_batch(facts, context))
    # An embedding is computed in one piece: both sizes bound what it may be made of.
    both = [Flag(Intent.BATCH, size)] if facts.pooling else []
    return [*both, Flag(Intent.UBATCH, size)]


def _placement_flags(decision: Decision, facts: GgufFacts, devices: tuple[str, ...]) -> list[Flag]:
    if decision.strategy is Strategy.PIPELINE:
        try:
            return split_flags(decision, devices)
        except ValueError as error:
            raise UserError(f"the split cannot be told to an engine: {error}") from error
    return _solo_flags(decision.layout, facts, devices)


def _solo_flags(layout: Layout, facts: GgufFacts, devices: tuple[str, ...]) -> list[Flag]:
    if not devices:
        return [Flag(Intent.DEVICES, "none"), Flag(Intent.GPU_LAYERS, "0")]
    layers = sum(layout.gpu_layers)
    flags = [
        Flag(Intent.DEVICES, ",".join(devices)),
        Flag(Intent.GPU_LAYERS, "all" if layers > len(facts.layers) else str(layers)),
    ]
    if len(devices) > 1:
        flags.append(Flag(Intent.SPLIT_MODE, "layer"))
        flags.append(Flag(Intent.TENSOR_SPLIT, ",".join(map(str, layout.gpu_layers))))
    if layout.cpu_moe_layers:
        flags.append(Flag(Intent.CPU_MOE_LAYERS, str(layout.cpu_moe_layers)))
    return flags


def _purpose_flags(facts: GgufFacts) -> list[Flag]:
    if facts.pooling:
        return [Flag(Intent.EMBEDDINGS, "on"), Flag(Intent.POOLING, facts.pooling)]
    return [Flag(Intent.JINJA, "on")]


def _memory_max_bytes(decision: Decision, cache_bytes: int, limit: Limit | None) -> int:
    """What the engine may take of system memory before it is stopped rather than the node."""
    planned = sum(use.total_bytes for use in decision.memory if use.device == RAM)
    most = planned * 5 // 4 + cache_bytes + GIB
    if limit is None or limit.ram_bytes is None:
        return most
    # The limit is the models'; their programs, and drivers within them, come on top.
    program_bytes = GIB if decision.layout.gpus else _PROGRAM_BYTES
    return min(most, limit.ram_bytes + program_bytes)
