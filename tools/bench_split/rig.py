"""Real engines on this machine, one thread each: stages work one after another, so two processors
are enough for any number of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp

from meshd.engine.build import EngineBuild
from meshd.mesh.record import Part
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Hardware
from meshd.paths import Paths
from meshd.planner.layout import RAM
from meshd.planner.lent import Lent
from meshd.planner.plan import Decision, Link, Strategy
from meshd.units.llama import llama_spec
from meshd.units.rpc import rpc_spec
from meshd.units.spec import EngineSpec
from tools.bench_split.predict import CONTEXT, HOST
from tools.bench_split.relay import Wire

_START_S = 120.0
_ANSWER_S = 120.0
_PROMPT = "the quick brown fox jumps over the lazy dog " * 2


def one_thread(hardware: Hardware) -> Hardware:
    return replace(hardware, cpu=replace(hardware.cpu, physical_cores=1, logical_cores=1))


def parts_of(facts: GgufFacts, stages: int) -> tuple[Part, ...]:
    """The layers in `stages` runs of nearly equal length: the host's first, then the members'."""
    count = len(facts.layers)
    ends = [count * (stage + 1) // stages for stage in range(stages)]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    names = [HOST, *(f"member{number}" for number in range(1, stages))]
    return tuple(Part(name, RAM, size, 0) for name, size in zip(names, sizes, strict=True))


@asynccontextmanager
async def serving(
    facts: GgufFacts,
    parts: tuple[Part, ...],
    wires: tuple[Wire, ...],
    build: EngineBuild,
    hardware: Hardware,
    paths: Paths,
) -> AsyncIterator[Path]:
    """Yields the Unix socket of a llama-server whose members are behind `wires`, one each."""
    async with contextlib.AsyncExitStack() as stack:
        for number, (part, wire) in enumerate(zip(parts[1:], wires, strict=True)):
            port = _free_port()
            lent = Lent(f"m{number}", "m", "", HOST, 1, (part,), 0, 0, port)
            spec = rpc_spec(lent, build, hardware, paths)
            # Weights come over the wire: what is looked at is the speed afterwards.
            argv = tuple(word for word in spec.argv if word != "--cache")
            await stack.enter_async_context(_running(replace(spec, argv=argv), paths))
            await _listens(port)
            await wire.open(port)
            stack.callback(wire.close)
        links = tuple(
            Link(part.node, "127.0.0.1", wire.port)
            for part, wire in zip(parts[1:], wires, strict=True)
        )
        decision = Decision(
            model="bench",
            strategy=Strategy.PIPELINE if links else Strategy.SOLO_CPU,
            node=HOST,
            context=CONTEXT,
            slots=1,
            parts=parts if links else (),
            links=links,
        )
        spec = llama_spec(decision, facts, build, hardware, paths)
        engine_socket = paths.engine_socket(spec.name)
        engine_socket.parent.mkdir(parents=True, exist_ok=True)
        process = await stack.enter_async_context(_running(spec, paths))
        async with asyncio.timeout(_START_S):
            while not await _answers(engine_socket):
                if process.returncode is not None:
                    raise RuntimeError(f"llama-server ended: see {paths.run}/{spec.name}.log")
                await asyncio.sleep(0.1)
        yield engine_socket


async def decode_tokens_s(engine: Path, count: int) -> float:
    """As the engine itself measures it."""
    body = {
        "prompt": _PROMPT,
        "n_predict": count,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": True,
    }
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(engine)),
            timeout=aiohttp.ClientTimeout(total=_ANSWER_S),
        ) as session,
        session.post("http://engine/completion", json=body) as response,
    ):
        response.raise_for_status()
        timings = (await response.json())["timings"]
    # The first token comes with the prompt, and its time is not among these.
    return float((timings["predicted_n"] - 1) / timings["predicted_ms"] * 1000)


async def _answers(engine: Path) -> bool:
    """llama-server answers 503 while it loads."""
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine))) as session,
            session.get("http://engine/health", timeout=aiohttp.ClientTimeout(2)) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


@asynccontextmanager
async def _running(spec: EngineSpec, paths: Paths) -> AsyncIterator[asyncio.subprocess.Process]:
    with (paths.run / f"{spec.name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *spec.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(paths.run), **dict(spec.environment)},
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _listens(port: int) -> None:
    async with asyncio.timeout(_START_S):
        while True:
            # Connecting and closing at once is safe; a HELLO without reading the reply is not.
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
