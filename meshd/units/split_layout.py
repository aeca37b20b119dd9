"""How a split is told to llama-server: devices, layers on each, and what the host keeps. Pure.

Source: ``get_layer_buft_list`` in llama.cpp's src/llama-model.cpp (b11669). ``-ngl`` counts from
the end, so the first blocks are the processor's; the output layer is one more on the last device,
and it takes a tensor override to keep it with a host that has no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshd.planner.layout import RAM
from meshd.planner.plan import Decision
from meshd.units.dialect import Flag
from meshd.units.flags import OUTPUT_ON_CPU
from meshd.units.intents import Intent


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """:ivar devices: for ``--device``; an rpc-server's are numbered over all endpoints.

    :ivar layers: on each, the output layer among those of the last.
    :ivar output_here: the output layer stays in the host's RAM all the same.
    """

    devices: tuple[str, ...]
    layers: tuple[int, ...]
    output_here: bool


def split_layout(decision: Decision, gpus: Sequence[str]) -> SplitLayout:
    """The devices of a pipeline in the order of its layers.

    :param gpus: the engine's names for the host's own, in the order of the decision's layout.
    :raises ValueError: the parts do not stand in the order that the engine can be told.
    """
    _check(decision)
    lent = [part for part in decision.parts if part.node != decision.node]
    numbers: dict[tuple[str, str], int] = {}
    for node in decision.members:
        for part in lent:
            if part.node == node:
                numbers[node, part.device] = len(numbers)
    devices = [f"RPC{numbers[part.node, part.device]}" for part in lent]
    layers = [part.layers for part in lent]
    if gpus:
        return SplitLayout(
            (*devices, *gpus), (*layers, *decision.layout.gpu_layers), output_here=False
        )
    return SplitLayout(tuple(devices), (*layers[:-1], layers[-1] + 1), output_here=True)


def split_flags(decision: Decision, gpus: Sequence[str]) -> list[Flag]:
    """:raises ValueError: as `split_layout`."""
    layout = split_layout(decision, gpus)
    flags = [
        Flag(Intent.RPC, ",".join(f"127.0.0.1:{port}" for port in decision.local_ports)),
        Flag(Intent.DEVICES, ",".join(layout.devices)),
        Flag(Intent.GPU_LAYERS, str(sum(layout.layers))),
        Flag(Intent.SPLIT_MODE, "layer"),
        Flag(Intent.TENSOR_SPLIT, ",".join(map(str, layout.layers))),
        # A GPU of the host would hold copies of layers that lie in RAM, which nobody planned.
        Flag(Intent.OP_OFFLOAD, "off"),
        Flag(Intent.KV_OFFLOAD, "on"),
        # Each would fetch what members hold of a conversation over the network.
        Flag(Intent.CHECKPOINTS, "0"),
    ]
    if layout.output_here:
        flags.append(Flag(Intent.OVERRIDE_TENSOR, OUTPUT_ON_CPU))
    return flags


def _check(decision: Decision) -> None:
    parts, members = decision.parts, decision.members
    if not members or len(members) != len(decision.local_ports):
        raise ValueError(f"{len(decision.local_ports)} ways to {len(members)} members")
    places = [(part.node, part.device) for part in parts]
    if len(set(places)) != len(places) or any(part.layers < 1 for part in parts):
        raise ValueError("a device has two parts, or one without layers")
    stages = [1 if part.node != decision.node else 0 if part.device == RAM else 2 for part in parts]
    if stages != sorted(stages):
        raise ValueError("the parts are not in the order RAM, members, GPUs")
    own = [
        (part.device, part.layers) for part, stage in zip(parts, stages, strict=True) if stage == 2
    ]
    layout = list(zip(decision.layout.gpus, decision.layout.gpu_layers, strict=True))
    if layout:
        last, count = layout[-1]
        layout[-1] = (last, count - 1)
    if own != [(device, count) for device, count in layout if count]:
        raise ValueError("the layout's GPUs are not those of the parts")
