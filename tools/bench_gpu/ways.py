"""The ways to lay a model over one node that are compared, and what runs them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.backends import EngineDevices
from meshd.engine.build import EngineBuild
from meshd.models.facts import GgufFacts
from meshd.node.speed import parse_bench
from meshd.planner.plan import Layout

_DEADLINE_S = 150.0
_PROMPT = 512
GENERATED = 64
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Way:
    """:ivar cache_mib: of the GPU, for experts that are kept in RAM (``--moe-cache-mib``)."""

    label: str
    layout: Layout
    cache_mib: int = 0


@dataclass(frozen=True, slots=True)
class Actual:
    """Tokens/s of one request. :ivar said: what the engine logged of its cache."""

    prompt: float
    decoding: float
    said: str = ""


def ways(facts: GgufFacts, gpu: str | None) -> Iterator[Way]:
    """From all on the GPU down to nothing there, what tells most first."""
    layers = len(facts.layers)
    if gpu:
        whole = Layout((gpu,), (layers + 1,))
        yield Way("whole on the GPU", whole)
        if facts.moe:
            for moved in (layers, layers // 2, layers // 4, layers * 3 // 4):
                label = "all" if moved == layers else str(moved)
                layout = Layout((gpu,), (layers + 1,), moved)
                yield Way(f"experts of {label} layers in RAM", layout)
    yield Way("all in RAM", Layout())
    if gpu:
        yield Way(f"{layers // 2} layers in RAM", Layout((gpu,), (layers - layers // 2,)))
    if gpu and facts.moe:
        experts = sum(layer.expert_bytes for layer in facts.layers) // MIB
        aside = Layout((gpu,), (layers + 1,), layers)
        for share in (50, 25, 75, 10, 100):
            size = experts * share // 100 + 1
            yield Way(f"experts in RAM, {share} % cached", aside, size)


def run(
    way: Way, facts: GgufFacts, path: Path, build: EngineBuild, devices: EngineDevices, threads: int
) -> Actual:
    """:raises ValueError: the engine ended badly or said nothing, with its last line."""
    if not way.layout.gpus:
        devices = EngineDevices((), ())
    runner = _cached if way.cache_mib else _bench
    return runner(way, path, build, devices, threads, facts)


def _placed(way: Way, facts: GgufFacts, devices: EngineDevices) -> tuple[str, ...]:
    layers = sum(way.layout.gpu_layers)
    return (
        *("-dev", ",".join(devices.names) or "none"),
        *("-ngl", "99" if layers > len(facts.layers) else str(layers)),
        *(("-ncmoe", str(way.layout.cpu_moe_layers)) if way.layout.cpu_moe_layers else ()),
    )


def _bench(
    way: Way,
    path: Path,
    build: EngineBuild,
    devices: EngineDevices,
    threads: int,
    facts: GgufFacts,
) -> Actual:
    text, _ = _output(
        build,
        "llama-bench",
        *("-m", str(path), *_placed(way, facts, devices), "-t", str(threads), "-lm", "mmap"),
        *("-p", str(_PROMPT), "-n", str(GENERATED), "-r", "2", "-o", "jsonl"),
        environment=devices.environment,
    )
    samples = parse_bench(text)
    prompt = next(one.best for one in samples if one.prompt)
    return Actual(prompt, next(one.best for one in samples if not one.prompt))


def _cached(
    way: Way,
    path: Path,
    build: EngineBuild,
    devices: EngineDevices,
    threads: int,
    facts: GgufFacts,
) -> Actual:
    """llama-bench knows no such cache; llama-batched-bench takes what llama-server takes."""
    text, said = _output(
        build,
        "llama-batched-bench",
        *("-m", str(path), *_placed(way, facts, devices), "-t", str(threads), "-lm", "mmap"),
        *("--moe-cache-mib", str(way.cache_mib), "--fit", "off", "-c", "2048", "-lv", "4"),
        *("-npp", str(_PROMPT), "-ntg", str(GENERATED * 2), "-npl", "1"),
        environment=devices.environment,
    )
    rows = re.findall(r"^\|\s+\d+ \|(.*)\|$", text, re.MULTILINE)
    if not rows:
        raise ValueError(f"llama-batched-bench: no row in {text[-200:]!r}")
    cells = [cell.strip() for cell in rows[-1].split("|")]
    of_cache = re.findall(r"(?:llama_moe_cache|MoE cache).*", text + said)
    return Actual(float(cells[4]), float(cells[6]), "; ".join(of_cache)[-400:])


def _output(
    build: EngineBuild, name: str, *arguments: str, environment: tuple[tuple[str, str], ...]
) -> tuple[str, str]:
    first = build.binary("llama-bench")
    if first is None:
        raise ValueError("this engine has no llama-bench")
    program = Path(first.path).parent / name
    try:
        done = subprocess.run(
            (str(program), *arguments),
            env={**os.environ, **dict(environment)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{name}: not done after {_DEADLINE_S:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{name}: exit {done.returncode}: {last[:300]}")
    return done.stdout, done.stderr
