"""Requests that have had their turn and have to wait again: they are called like all others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from meshd.gateway.routes import ModelState, Route, Target
from meshd.gateway.wait_ends import Stopping
from meshd.gateway.waiting_room import Waiter, WaitingRoom

_DEADLINE_S = 20.0
_READY = Route("tiny", ModelState.READY, (Target("n", "/run/x", True, 1),))


@dataclass
class _World:
    """What the room sees."""

    now_s: float = 100.0
    free: bool = False
    route: Route = _READY

    def room(self) -> WaitingRoom:
        return WaitingRoom(lambda _: self.route, clock=lambda: self.now_s)

    def enter(self, room: WaitingRoom, kind: object = None, until_s: float = 1e6) -> Waiter:
        return room.enter("tiny", until_s=until_s, could=lambda: self.free, kind=kind)


async def _waits(waiter: Waiter) -> asyncio.Task[None]:
    """It waits for its turn, and has found none so far."""
    task = asyncio.create_task(waiter.turn())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_who_waits_again_is_called_though_its_line_is_a_new_one() -> None:
    world = _World()
    room = world.room()
    waiter = world.enter(room)
    for _ in range(5):
        room.freed("tiny")  # news that helps nobody
    turn = await _waits(waiter)
    world.free = True
    room.freed("tiny")
    async with asyncio.timeout(_DEADLINE_S):
        await turn
    waiter.took()
    assert not room.waiting(), "its line is gone"

    world.free = False
    turn = await _waits(waiter)  # its engine failed it
    world.free = True
    room.freed("tiny")
    async with asyncio.timeout(_DEADLINE_S):
        await turn
    waiter.leave()


async def test_a_request_that_became_another_kind_does_not_block_those_of_its_old_one() -> None:
    world = _World()
    room = world.room()
    changed = room.enter("tiny", until_s=1e6, could=lambda: False, kind="any")
    changed.kind = "long"
    other = world.enter(room, "any")
    turns = [await _waits(changed), await _waits(other)]
    world.free = True
    room.freed("tiny")
    async with asyncio.timeout(_DEADLINE_S):
        await turns[1]
    turns[0].cancel()
    for waiter in (changed, other):
        waiter.leave()


async def test_what_ended_one_wait_does_not_end_the_next() -> None:
    world = _World()
    room = world.room()
    waiter = world.enter(room, until_s=110)
    turn = await _waits(waiter)
    world.free = True
    room.freed("tiny")  # it is called, and before it knows, this comes:
    loading = Target("n", "/run/x", False, 1, load_s=60, since_s=100)
    world.route = Route("tiny", ModelState.LOADING, (loading,))
    room.news()
    async with asyncio.timeout(_DEADLINE_S):
        await turn
    waiter.took()
    world.free, world.route = False, _READY
    turn = await _waits(waiter)
    room.stop()
    with pytest.raises(Stopping):
        await turn
    waiter.leave()
