"""Which part of a model lies where: pure, in the engine's own terms."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from meshd.models.facts import GgufFacts

HOST = "host"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one engine puts a model.

    :ivar devices: those that the engine is given, in ``--device`` order; `HOST` is not one.
    :ivar layers: a device or `HOST` for every block; ``output`` the same for the output layer.
    :ivar host_experts: blocks whose routed experts stay in RAM (``--n-cpu-moe``).
    :ivar pipelined: the scheduler keeps copies of its inputs to overlap prompt batches.
    """

    devices: tuple[str, ...]
    layers: tuple[str, ...]
    output: str
    host_experts: frozenset[int] = frozenset()
    pipelined: bool = False


def on_host(facts: GgufFacts) -> Placement:
    """CPU only (``--device none``)."""
    return Placement((), (HOST,) * len(facts.layers), HOST)


def solo(facts: GgufFacts, device: str, *, n_cpu_moe: int = 0) -> Placement:
    """All on one device, except the experts of the first `n_cpu_moe` blocks."""
    return split(facts, (device,), n_cpu_moe=n_cpu_moe)


def split(
    facts: GgufFacts,
    devices: Sequence[str],
    *,
    proportions: Sequence[float] = (),
    gpu_layers: int | None = None,
    n_cpu_moe: int = 0,
) -> Placement:
    """Whole layers over several devices as ``-ts``, ``-ngl`` and ``--n-cpu-moe`` put them.

    Source: ``get_layer_buft_list`` in llama.cpp's src/llama-model.cpp; the output layer counts as
    the last one. Pipelining: the conditions in src/llama-context.cpp.

    :raises ValueError: no proportion for each device, or none above zero.
    """
    shares = tuple(proportions) or (1.0,) * len(devices)
    if len(shares) != len(devices) or min(shares, default=0) < 0 or not sum(shares):
        raise ValueError(f"{len(devices)} devices, proportions {shares}")
    count = len(facts.layers) + 1
    wanted = count if gpu_layers is None else min(gpu_layers, count)
    ends = [end / sum(shares) for end in accumulate(shares)]
    first = count - wanted

    def place(number: int) -> str:
        if number < first:
            return HOST
        return devices[min(bisect_right(ends, (number - first) / wanted), len(devices) - 1)]

    places = [place(number) for number in range(count)]
    return Placement(
        devices=tuple(devices),
        layers=tuple(places[:-1]),
        output=places[-1],
        host_experts=frozenset(range(min(n_cpu_moe, count - 1))),
        pipelined=len(devices) > 1 and wanted == count and n_cpu_moe == 0,
    )


def pipeline(
    facts: GgufFacts, host_layers: int, devices: Sequence[tuple[str, int]], *, output: str
) -> Placement:
    """A model over several nodes: blocks in RAM first, then on each device so many as it is given.

    :param devices: names and blocks in ``--device`` order: the members', then the host's GPUs.
    :param output: the last device, or `HOST`, where a tensor override keeps it; an override also
        keeps the engine from pipelining, as blocks in RAM do (src/llama-context.cpp).
    :raises ValueError: the blocks are not as many as the model's, or the output lies elsewhere.
    """
    names = tuple(name for name, _ in devices)
    layers = (HOST,) * host_layers + tuple(name for name, count in devices for _ in range(count))
    if len(layers) != len(facts.layers):
        raise ValueError(f"{len(layers)} layers placed of {len(facts.layers)}")
    if output not in (HOST, *names[-1:]):
        raise ValueError(f"the output layer is on the host or on the last device, not on {output}")
    return Placement(
        devices=names,
        layers=layers,
        output=output,
        pipelined=len(names) > 1 and host_layers == 0 and output != HOST,
    )
