"""Which of the GPUs the configuration lets us use."""

from __future__ import annotations

from meshd.errors import UserError
from meshd.node.inventory import Gpu, Hardware


def select_gpus(hardware: Hardware, wanted: str | tuple[str, ...]) -> tuple[Gpu, ...]:
    """The GPUs that may be planned on, in the order of the configuration.

    "auto" takes every card, and the graphics in the processor only where there is no card: it
    shares the processor's memory and mostly slows a card down (llama.cpp chooses likewise).

    :param wanted: ``node.gpus`` of the configuration: "auto", or stable ids.
    :raises UserError: a wanted GPU is not there. It fails closed: a service that was pinned to one
        card must not wander to another.
    """
    if isinstance(wanted, str):
        cards = tuple(gpu for gpu in hardware.gpus if not gpu.unified)
        return cards or hardware.gpus
    by_id = {gpu.id.lower(): gpu for gpu in hardware.gpus}
    missing = [name for name in wanted if name.lower() not in by_id]
    if missing:
        there = ", ".join(f"{gpu.id} ({gpu.name})" for gpu in hardware.gpus) or "no GPU"
        trouble = f"; {'; '.join(hardware.problems)}" if hardware.problems else ""
        raise UserError(
            f"node.gpus: {', '.join(missing)} is not in this machine, which has {there}{trouble}",
            hint="`meshd doctor` says what is wrong; `gpus: auto` takes what there is",
        )
    return tuple(dict.fromkeys(by_id[name.lower()] for name in wanted))
