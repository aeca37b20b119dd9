"""`meshd demo --nodes 3 --experts`: a mixture of experts that no node of the mesh can hold, served
by each from a shard of its own; then one of them is killed, and its conversation goes on elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.cli.demo import stream_answer, until_interrupted
from meshd.cli.demo_boxes import HEAL_DEADLINE_S, Box, missed, started, until
from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.status import ModelStatus

MODEL = "tiny-moe"
# What a toy loses without some of its experts is more than a large model does. Each request's
# context takes 3 MiB beside the weights: so many and all of its experts are too much for one node.
_MODELS = (
    f"  - {{name: {MODEL}, source: tiny-moe.gguf, context: 1024, slots: 13, split: never, "
    "quality: {min_top1: 0.5}}\n"
)
_NODE = "limit: {ram: 64MiB}"
_SESSION = "demo-conversation"

# Experts are counted, shards cut and measured, with a quiet moment before.
_UP_DEADLINE_S = 900.0


async def experts_demo(root: Path, count: int, question: str, *, once: bool) -> int:
    """:raises UserError: anything went otherwise than shown."""
    if count < 2:
        raise UserError(f"--nodes {count}: experts are shared by two nodes at least")
    began_s = time.monotonic()
    async with started(root, count, _MODELS, _NODE) as boxes:
        telling = asyncio.create_task(_tell(boxes))
        try:
            shards = await until(lambda: _served(boxes), boxes, _UP_DEADLINE_S)
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling
        print(f"\nserved by all after {time.monotonic() - began_s:.1f} s\n")
        for box in boxes:
            print(f"  {box.name} serves {MODEL} from {_words(shards[box.name])}")
        asked = boxes[0]
        answered = await _ask(asked, question)
        victim = next(box for box in boxes if box.name == answered)
        left = [box for box in boxes if box is not victim]
        print(f"\nkill -9 {victim.name}, which answered")
        killed_s = time.monotonic()
        await victim.kill()
        answered = await _ask(left[0], question)
        print(f"\n  {time.monotonic() - killed_s:4.1f} s  the conversation goes on at {answered}")
        await until(lambda: missed(left[0], victim), left, HEAL_DEADLINE_S)
        print(f"  {time.monotonic() - killed_s:4.1f} s  {victim.name} is missed")
        if not once:
            print(f"\nOpenAI API  {left[0].api}/v1\nRunning until Ctrl-C.")
            assert left[0].process is not None
            await until_interrupted(left[0].process)
    return 0


async def _served(boxes: list[Box]) -> dict[str, ModelStatus] | None:
    """What each serves, when all answer from shards and the first one's gateway knows."""
    found = {}
    for box in boxes:
        model = (await box.status()).model(MODEL)
        if model is None or model.state != "ready" or model.strategy != "expert-shard":
            return None
        found[box.name] = model
    return found if await boxes[0].offers(MODEL) else None


async def _tell(boxes: list[Box]) -> None:
    """How far the shards are, a line for what is new."""
    from meshd.control import NotRunningError

    said: dict[str, str] = {}
    while True:
        for box in boxes:
            with contextlib.suppress(NotRunningError, UserError):
                model = (await box.status()).model(MODEL)
                line = _progress(model, box.name) if model is not None else ""
                if line and said.get(box.name) != line:
                    said[box.name] = line
                    print(f"  {box.name}: {line}", flush=True)
        await asyncio.sleep(0.5)


def _progress(model: ModelStatus, name: str) -> str:
    from meshd.shard_line import progress

    return next((progress(one) for one in model.shards if one.node == name), "")


def _words(model: ModelStatus) -> str:
    from meshd.shard_line import shape

    assert model.shard is not None
    return shape(model.shard)


async def _ask(asked: Box, question: str) -> str:
    """The name of the node that answered."""
    print(f"\n> {question}   ({MODEL}, asked at {asked.name})\n")
    head = await stream_answer(asked.api, MODEL, question, session=_SESSION)
    print(f"\n  X-Mesh-Node: {head['X-Mesh-Node']}\n  X-Mesh-Quality: {head['X-Mesh-Quality']}")
    return head["X-Mesh-Node"]
