"""How fast this machine's devices compute for an engine, and how long that is remembered. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import msgspec

from meshd.engine.build import EngineBuild
from meshd.node.inventory import Cpu, Gpu, Hardware

SCHEMA = 1
FILE_MAX_BYTES = 64 * 1024
DEVICES_MAX = 64

RAM = "ram"
LAYER_S = 20e-6
"""What a layer costs a processor beside reading its weights: starting and ending its operations
(measured with a model that fits the cache: 0.43 ms a token in 6 layers, most of it reading)."""
CALM_SPREAD = 1.15
"""Samples of a machine that did nothing else lie closer together than this."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One device, as `mesh.record.DeviceRecord` has it.

    :ivar device: a GPU's stable id, or ``ram``.
    :ivar key: of hardware and engine build; measured anew with another one.
    :ivar calm: the machine did nothing else meanwhile.
    """

    device: str
    key: str
    bandwidth_bytes_s: int
    flops_s: int
    lent_bandwidth_bytes_s: int = 0
    lent_flops_s: int = 0
    calm: bool = True


@dataclass(frozen=True, slots=True)
class _File:
    schema: int
    speeds: tuple[Speed, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What llama-bench said of one test. :ivar prompt: of a prompt, else of decoding."""

    prompt: bool
    tokens_s: tuple[float, ...]

    @property
    def best(self) -> float:
        """What disturbs makes slower, never faster."""
        return max(self.tokens_s)

    @property
    def calm(self) -> bool:
        return self.best <= median(self.tokens_s) * CALM_SPREAD


class _Row(msgspec.Struct):
    """A line of ``llama-bench -o jsonl``; upstream's tools/llama-bench/llama-bench.cpp."""

    n_prompt: int
    n_gen: int
    samples_ts: list[float]


def parse_bench(text: str) -> tuple[Sample, ...]:
    """The tests in what ``llama-bench -o jsonl`` printed.

    :raises ValueError: a line that is none, or a test without a positive speed.
    """
    samples = []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            row = msgspec.json.decode(line, type=_Row)
        except msgspec.MsgspecError as error:
            raise ValueError(f"llama-bench: {error}: {line[:80]}") from None
        speeds = tuple(row.samples_ts)
        if not speeds or not all(0 < speed < math.inf for speed in speeds):
            raise ValueError(f"llama-bench: no speed in {line[:80]}")
        samples.append(Sample(prompt=row.n_prompt > 0 and row.n_gen == 0, tokens_s=speeds))
    return tuple(samples)


def bandwidth_bytes_s(read_bytes: int, layers: int, tokens_s: float) -> int:
    """Effective bandwidth out of decoding: bytes a token over its time, less the fixed cost."""
    token_s = 1 / tokens_s
    return rounded(read_bytes / max(token_s - layers * LAYER_S, token_s / 2))


def flops_s(weights: int, tokens_s: float) -> int:
    """A multiplication and an addition for each weight and token."""
    return rounded(2 * weights * tokens_s)


def rounded(value: float) -> int:
    """To two significant digits, so that noise is no change.

    >>> rounded(12_634_000_000)
    13000000000
    """
    if value <= 0:
        return 0
    step = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / step) * step)


def ram_key(cpu: Cpu, build: EngineBuild) -> str:
    return _key(cpu.name, str(cpu.physical_cores), str(cpu.logical_cores), *_engine(build))


def gpu_key(gpu: Gpu, build: EngineBuild) -> str:
    return _key(gpu.id, gpu.name, gpu.driver, *_engine(build))


def keys(hardware: Hardware, gpus: Iterable[Gpu], build: EngineBuild) -> dict[str, str]:
    """What each device's speed is remembered under: the system's memory, then `gpus`."""
    return {
        RAM: ram_key(hardware.cpu, build),
        **{gpu.id: gpu_key(gpu, build) for gpu in gpus},
    }


def valid(speeds: Iterable[Speed], wanted: Mapping[str, str]) -> dict[str, Speed]:
    """Those that still tell of this hardware and engine, by device."""
    return {one.device: one for one in speeds if wanted.get(one.device) == one.key}


def better(known: Speed | None, new: Speed) -> Speed:
    """What to keep of two measurements of one device: a calm one, else the faster."""
    if known is None or known.key != new.key or new.calm:
        return new
    if known.calm or known.bandwidth_bytes_s >= new.bandwidth_bytes_s:
        return known
    return new


def encode(speeds: Iterable[Speed]) -> bytes:
    """JSON, as `decode` reads it."""
    return msgspec.json.encode(_File(SCHEMA, tuple(speeds))) + b"\n"


def decode(data: bytes) -> tuple[Speed, ...]:
    """:raises ValueError: no such file, of another schema, or with values that cannot be."""
    if len(data) > FILE_MAX_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {FILE_MAX_BYTES}")
    try:
        found = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if found.schema != SCHEMA:
        raise ValueError(f"schema {found.schema}, this is {SCHEMA}")
    for one in found.speeds:
        figures = (
            *(one.bandwidth_bytes_s, one.flops_s),
            *(one.lent_bandwidth_bytes_s, one.lent_flops_s),
        )
        if not all(0 <= figure < 2**62 for figure in figures):
            raise ValueError(f"{one.device[:64]}: a speed that cannot be")
    return found.speeds[:DEVICES_MAX]


def _engine(build: EngineBuild) -> tuple[str, ...]:
    bench = build.binary("llama-bench")
    digest = bench.sha256 if bench else ""
    return (build.version, build.package, build.ggml, str(build.build), digest, *build.backends)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
