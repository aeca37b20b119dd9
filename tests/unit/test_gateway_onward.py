"""What gateways tell each other of a request that waits, and what the waiting room makes of it."""

from __future__ import annotations

import asyncio
import math

import pytest

from meshd.gateway.onward import BEGUN, KEY, PATIENCE, PRIORITY, WAITED, Onward, read_onward
from meshd.gateway.routes import ModelState, Route, Target
from meshd.gateway.wait_ends import Full, TooLong
from meshd.gateway.waiting_room import Waiter, WaitingRoom


@pytest.mark.parametrize(
    "said",
    [
        Onward(),
        Onward(12.5, 3.0),
        Onward(0.25, 0.0, begun=True),
        Onward(1.0, math.inf),
        Onward(1.0, key="alice", priority=-10),
    ],
)
def test_what_is_said_is_read_back(said: Onward) -> None:
    assert read_onward(said.headers()) == said


def test_patience_that_is_used_up_is_none_left() -> None:
    assert read_onward(Onward(1.0, -3.0).headers()).patience_s == 0.0


@pytest.mark.parametrize("junk", ["", "soon", "nan", "inf", "-1", "1e999"])
def test_what_is_no_number_is_as_if_nothing_was_said(junk: str) -> None:
    assert read_onward({WAITED: junk, PATIENCE: junk}) == Onward()
    assert read_onward({BEGUN: junk}).begun


@pytest.mark.parametrize("junk", ["", "high", "99999", "1.5", "+1", "\u0661"])
def test_a_priority_is_one_of_key_files_and_a_key_has_a_name(junk: str) -> None:
    assert read_onward({PRIORITY: junk, KEY: f"a/{junk}"}) == Onward()
    assert read_onward({PRIORITY: "99"}).priority == 10


class _Room(WaitingRoom):
    """For one model, all of whose slots are taken."""

    def __init__(self, *, limit: int = 256) -> None:
        self.at_s = 1000.0
        self.open = False
        route = Route("m", ModelState.READY, (Target("n", "/s", True, 1),))
        super().__init__(lambda _: route, limit=limit, clock=lambda: self.at_s)

    def come(self, *, waited_s: float = 0.0, first: bool = False) -> Waiter:
        return self.enter(
            "m",
            until_s=self.at_s + 1000,
            could=lambda: self.open,
            waited_s=waited_s,
            first=first,
        )


async def _order(room: _Room, waiters: dict[str, Waiter]) -> list[str]:
    """Who has a turn when, each taking it."""
    order: list[str] = []

    async def one(name: str, waiter: Waiter) -> None:
        await waiter.turn()
        order.append(name)
        waiter.took()

    room.open = True
    tasks = [asyncio.create_task(one(name, waiter)) for name, waiter in waiters.items()]
    for _ in waiters:
        room.freed("m")
        for _ in range(5):
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return order


async def test_what_was_waited_elsewhere_counts_and_a_broken_stream_goes_first() -> None:
    room = _Room()
    waiters = {"a": room.come(), "b": room.come()}
    room.at_s += 5
    waiters["older"] = room.come(waited_s=60)
    waiters["younger"] = room.come(waited_s=2)
    waiters["broken"] = room.come(waited_s=1, first=True)
    assert await _order(room, waiters) == ["broken", "older", "a", "b", "younger"]


async def test_a_broken_stream_is_let_in_where_all_places_are_taken() -> None:
    room = _Room(limit=1)
    waiters = {"a": room.come()}
    with pytest.raises(Full):
        room.come()
    waiters["broken"] = room.come(first=True)
    assert await _order(room, waiters) == ["broken", "a"]


async def test_one_that_may_go_elsewhere_waits_its_while_however_long_the_queue() -> None:
    """Only what it may wait in all is compared with the time that the queue will take."""
    room = _Room()
    for _ in range(5):
        room.freed("m", took_s=100)
    room.come()
    waiter = room.come()
    assert (room.eta(waiter).seconds or 0) > 50
    turn = asyncio.create_task(waiter.turn(None, room.at_s + 10))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not turn.done()
    turn.cancel()
    room.at_s += 10
    with pytest.raises(TooLong):
        await waiter.turn(None, room.at_s)
