"""`meshd demo --nodes 3 --split`: a model that no node of the mesh can hold, served by two of them;
then the one that lends its memory is killed, and another one takes its place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.cli.demo import stream_answer, until_interrupted
from meshd.cli.demo_boxes import HEAL_DEADLINE_S, Box, missed, started, until
from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.status import LentStatus, ModelStatus

MODEL = "tiny"
# Each request's context takes 3 MiB beside the weights: with so many it is too much for one node.
_MODELS = (
    f"  - {{name: {MODEL}, source: tiny.gguf, context: 1024, slots: 16, replicas: {{max: 1}}}}\n"
)
_NODE = "limit: {ram: 64MiB}"

_UP_DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class _Split:
    """:ivar lenders: with what each lends, in the order of the layers."""

    host: Box
    model: ModelStatus
    lenders: tuple[tuple[Box, LentStatus], ...]


async def split_demo(root: Path, count: int, question: str, *, once: bool) -> int:
    """:raises UserError: anything went otherwise than shown."""
    if count < 3:
        raise UserError(f"--nodes {count}: a split that loses a node needs a third one")
    began_s = time.monotonic()
    async with started(root, count, _MODELS, _NODE) as boxes:
        split = await until(lambda: _served(boxes), boxes, _UP_DEADLINE_S)
        print(f"served after {time.monotonic() - began_s:.1f} s\n")
        _print(split)
        await _ask(_asked(boxes, split), split, question)
        victim, lent = split.lenders[0]
        print(f"\nkill -9 {victim.name}, which holds {lent.layers} layers of {MODEL}")
        killed_s = time.monotonic()
        await victim.kill()

        def say(what: str) -> None:
            print(f"  {time.monotonic() - killed_s:4.1f} s  {what}", flush=True)

        left = [box for box in boxes if box is not victim]
        await until(lambda: missed(left[0], victim), left, HEAL_DEADLINE_S)
        say(f"{victim.name} is missed: its layers are placed anew")
        split = await until(lambda: _served(left), left, HEAL_DEADLINE_S)
        say(f"{split.host.name} serves {MODEL} over {', '.join(split.model.over)}\n")
        _print(split)
        asked = _asked(left, split)
        await _ask(asked, split, question)
        if not once:
            print(f"\nOpenAI API  {asked.api}/v1\nRunning until Ctrl-C.")
            assert asked.process is not None
            await until_interrupted(asked.process)
    return 0


async def _served(boxes: list[Box]) -> _Split | None:
    """The split, when it answers and every gateway knows."""
    for box in boxes:
        if not await box.offers(MODEL):
            return None
    said = {box.name: await box.status() for box in boxes}
    by_name = {box.name: box for box in boxes}
    for box in boxes:
        model = said[box.name].model(MODEL)
        if model is None or model.state != "ready" or model.strategy != "pipeline":
            continue
        lenders = tuple(
            (by_name[name], lent)
            for name in model.over
            if name in by_name
            for lent in said[name].lends
            if lent.model == MODEL and lent.host == box.name and lent.stage == "ready"
        )
        if lenders and len(lenders) == len(model.over):
            return _Split(box, model, lenders)
    return None


def _asked(boxes: list[Box], split: _Split) -> Box:
    """One that has nothing of the model, where there is one."""
    busy = {split.host.name, *split.model.over}
    return next((box for box in boxes if box.name not in busy), split.host)


async def _ask(asked: Box, split: _Split, question: str) -> None:
    over = ", ".join((split.host.name, *split.model.over))
    print(f"\n> {question}   ({MODEL}, asked at {asked.name}, answered by {over} together)\n")
    await stream_answer(asked.api, MODEL, question)


def _print(split: _Split) -> None:
    from meshd.report import size

    model = split.model
    print(f"  {split.host.name} hosts {MODEL}: {size(model.memory_bytes)} of it in its own memory")
    for box, lent in split.lenders:
        print(
            f"  {box.name} lends {size(lent.size_bytes)} for {lent.layers} layers, over the mesh's "
            "TLS"
        )
