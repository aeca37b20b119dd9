"""`meshd demo --nodes 3`: a mesh on one machine. Two models on different nodes behind one endpoint;
then one node is killed, and the others take over what it served.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.cli.demo import stream_answer, until_interrupted
from meshd.cli.demo_boxes import (
    HEAL_DEADLINE_S,
    Box,
    gone,
    missed,
    print_members,
    started,
    until,
)
from meshd.errors import UserError

if TYPE_CHECKING:
    from meshd.mesh.member_line import MemberLine

MODELS = (("tiny", "tiny.gguf"), ("tiny-moe", "tiny-moe.gguf"))

_UP_DEADLINE_S = 120.0


async def mesh_demo(root: Path, count: int, question: str, *, once: bool) -> int:
    """:raises UserError: anything went otherwise than shown."""
    models = "".join(f"  - {{name: {model}, source: {file}}}\n" for model, file in MODELS)
    began_s = time.monotonic()
    async with started(root, count, models) as boxes:
        asked = boxes[0]
        members = await until(lambda: _all_served(asked, count), boxes, _UP_DEADLINE_S)
        print(f"one mesh after {time.monotonic() - began_s:.1f} s\n")
        await print_members(asked)
        for model, _ in MODELS:
            await _ask(asked, members, model, question)
        await _kill_and_heal(boxes, members, question)
        if not once:
            print(f"\nOpenAI API  {asked.api}/v1\nRunning until Ctrl-C.")
            assert asked.process is not None
            await until_interrupted(asked.process)
    return 0


async def _kill_and_heal(boxes: list[Box], members: tuple[MemberLine, ...], question: str) -> None:
    """Kill a node that serves and is not the one we ask; wait until its model is served again."""
    asked = boxes[0]
    victim, model = _victim(boxes, members)
    print(f"\nkill -9 {victim.name}, which serves {model}")
    killed_s = time.monotonic()
    await victim.kill()

    def say(what: str) -> None:
        print(f"  {time.monotonic() - killed_s:4.1f} s  {what}", flush=True)

    await until(lambda: missed(asked, victim), boxes, HEAL_DEADLINE_S)
    say(f"{victim.name} is missed: nobody asks it any more")
    members = await until(lambda: gone(asked, victim), boxes, HEAL_DEADLINE_S)
    say(f"{victim.name} is dead: {model} is placed anew")
    members = await until(lambda: _served_by(asked, model), boxes, HEAL_DEADLINE_S)
    say(f"{_at(members, model)} serves {model}")
    await _ask(asked, members, model, question)
    print()
    await print_members(asked)


async def _ask(asked: Box, members: tuple[MemberLine, ...], model: str, question: str) -> None:
    print(f"\n> {question}   ({model}, asked at {asked.name}, answered by {_at(members, model)})\n")
    await stream_answer(asked.api, model, question)


async def _all_served(box: Box, count: int) -> tuple[MemberLine, ...] | None:
    members = await box.members()
    served = {model for member in members for model in member.models}
    there = len(members) == count and served >= {model for model, _ in MODELS}
    for model, _ in MODELS:
        there = there and await box.offers(model)
    return members if there and (await box.status()).healthy else None


async def _served_by(box: Box, model: str) -> tuple[MemberLine, ...] | None:
    """Whether somebody serves it and this node's gateway knows."""
    members = await box.members()
    there = any(model in member.models for member in members)
    return members if there and await box.offers(model) else None


def _victim(boxes: list[Box], members: tuple[MemberLine, ...]) -> tuple[Box, str]:
    for member in members:
        box = next((box for box in boxes[1:] if box.name == member.name), None)
        if box is not None and member.models:
            return box, member.models[0]
    raise UserError("only the node that is asked serves anything: nothing to show")


def _at(members: tuple[MemberLine, ...], model: str) -> str:
    return " and ".join(member.name for member in members if model in member.models)
