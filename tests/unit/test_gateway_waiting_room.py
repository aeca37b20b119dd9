"""Where requests wait: whose turn it is, who is called, and that nobody is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from meshd.gateway.routes import ModelState, Route, Target
from meshd.gateway.wait_ends import Full, Stopping, TooLong
from meshd.gateway.waiting_room import Waiter, WaitingRoom

_DEADLINE_S = 20.0


@dataclass
class _Engine:
    """Slots that a model has, its route, and the time as the room reads it."""

    slots: int = 0
    busy: int = 0
    now_s: float = 100.0
    route: Route = field(default_factory=lambda: Route("tiny", ModelState.LOADING))
    asked: int = 0

    def could(self) -> bool:
        self.asked += 1
        return self.busy < self.slots

    def room(self, limit: int = 256) -> WaitingRoom:
        return WaitingRoom(lambda _: self.route, limit=limit, clock=lambda: self.now_s)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1


def _loading(load_s: float, since_s: float) -> Route:
    target = Target("n", "/run/x", False, 1, load_s=load_s, since_s=since_s)
    return Route("tiny", ModelState.LOADING, (target,))


def _ready(slots: int = 1) -> Route:
    return Route("tiny", ModelState.READY, (Target("n", "/run/x", True, slots),))


async def _settle() -> None:
    """Let all tasks run until each of them waits."""
    for _ in range(20):
        await asyncio.sleep(0)


class _Requests:
    """Requests that go through a room as the relay's do."""

    def __init__(self, engine: _Engine, room: WaitingRoom) -> None:
        self.engine = engine
        self.room = room
        self.served: list[str] = []
        self.turns = 0
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def ask(self, name: str, key: str = "", priority: int = 0, until_s: float = 1e6) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._handle(name, key, priority, until_s))

    def end(self, name: str) -> None:
        self._ends[name].set()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def result(self, name: str) -> None:
        async with asyncio.timeout(_DEADLINE_S):
            await self._tasks[name]

    async def _handle(self, name: str, key: str, priority: int, until_s: float) -> None:
        room, engine = self.room, self.engine
        waiter: Waiter | None = None
        try:
            while not engine.could() or room.others_first("tiny", waiter):
                waiter = waiter or room.enter(
                    "tiny", key, priority, until_s=until_s, could=engine.could
                )
                await waiter.turn()
                self.turns += 1
            with engine.at_work():
                if waiter:
                    waiter.took()
                self.served.append(name)
                await self._ends[name].wait()
            room.freed("tiny", 1.0)
        finally:
            if waiter:
                waiter.leave()


async def test_one_freed_slot_wakes_one_request() -> None:
    engine = _Engine(slots=1)
    requests = _Requests(engine, engine.room())
    for number in range(20):
        requests.ask(f"r{number}")
    await _settle()
    assert requests.served == ["r0"]
    assert requests.room.waiting() == {"tiny": 19}
    requests.end("r0")
    await _settle()
    assert requests.served == ["r0", "r1"]
    assert requests.turns == 1


async def test_a_model_that_becomes_ready_wakes_as_many_as_it_has_slots() -> None:
    engine = _Engine(slots=0)
    requests = _Requests(engine, engine.room())
    for number in range(10):
        requests.ask(f"r{number}")
    await _settle()
    assert requests.served == []
    engine.slots = 4
    requests.room.news()
    await _settle()
    assert requests.served == ["r0", "r1", "r2", "r3"]
    assert requests.turns == 4
    for number in range(10):
        requests.end(f"r{number}")
    for number in range(10):
        await requests.result(f"r{number}")
    assert requests.served == [f"r{number}" for number in range(10)]
    assert requests.room.waiting() == {}


async def test_keys_take_turns_and_a_newcomer_does_not_go_ahead() -> None:
    engine = _Engine(slots=0)
    requests = _Requests(engine, engine.room())
    for number in range(4):
        requests.ask(f"a{number}", key="a")
    await _settle()
    requests.ask("b0", key="b")
    requests.ask("b1", key="b")
    await _settle()
    engine.slots = 1
    requests.room.news()
    requests.ask("late", key="c")
    await _settle()
    for name in ("a0", "b0", "late", "a1", "b1", "a2"):
        assert requests.served[-1] == name
        requests.end(name)
        await _settle()
    assert requests.served[-1] == "a3"


async def test_a_called_request_that_is_cancelled_passes_its_turn_on() -> None:
    engine = _Engine(slots=0)
    requests = _Requests(engine, engine.room())
    for name in ("a", "b", "c"):
        requests.ask(name)
    await _settle()
    engine.slots = 1
    requests.room.news()
    requests.cancel("a")  # called, but it has not run yet
    await _settle()
    assert requests.served == ["b"]
    requests.cancel("c")
    await _settle()
    assert requests.room.waiting() == {}


async def test_who_finds_nothing_keeps_its_place_and_is_not_called_in_a_circle() -> None:
    engine = _Engine(slots=0)
    room = engine.room()
    could = True
    first = room.enter("tiny", until_s=1e6, could=lambda: could)
    second = room.enter("tiny", until_s=1e6, could=lambda: False, kind="other")
    await first.turn()
    again = asyncio.create_task(first.turn())  # it says that it could, and could not
    await _settle()
    assert not again.done()
    assert room.ahead(first) == 0
    assert room.ahead(second) == 1
    room.news()
    await _settle()
    assert again.done()
    first.leave()
    second.leave()
    assert room.waiting() == {}


async def test_who_is_failed_by_an_engine_goes_before_all_others() -> None:
    engine = _Engine(slots=1)
    room = engine.room()
    first = room.enter("tiny", "a", until_s=1e6, could=engine.could)
    await first.turn()
    with engine.at_work():
        first.took()
        others = [room.enter("tiny", "b", 3, until_s=1e6, could=engine.could) for _ in range(3)]
        back = asyncio.create_task(first.turn())
        await _settle()
        assert [room.ahead(one) for one in (first, *others)] == [0, 1, 2, 3]
    room.freed("tiny")
    await _settle()
    assert back.done()
    for one in (first, *others):
        one.leave()


async def test_one_that_cannot_be_helped_does_not_block_another_kind() -> None:
    engine = _Engine(slots=0)
    room = engine.room()
    asked = 0

    def not_here() -> bool:
        nonlocal asked
        asked += 1
        return False

    hops = [room.enter("tiny", until_s=1e6, could=not_here, kind="hop") for _ in range(50)]
    mine = room.enter("tiny", until_s=1e6, could=lambda: True, kind="mine")
    async with asyncio.timeout(_DEADLINE_S):
        await mine.turn()
    assert asked <= len(hops) + 1  # one of a kind is asked, not all of them each time
    for one in (*hops, mine):
        one.leave()


async def test_a_client_that_does_not_read_its_comments_holds_up_nobody() -> None:
    engine = _Engine(slots=0, route=_ready())
    room = engine.room()
    stuck, words = asyncio.Event(), []

    async def tell(text: str) -> None:
        words.append(text)
        await stuck.wait()

    slow = room.enter("tiny", until_s=1e6, could=engine.could)
    quick = room.enter("tiny", until_s=1e6, could=engine.could)
    engine.now_s += 3.0
    slow_turn = asyncio.create_task(slow.turn(tell))
    quick_turn = asyncio.create_task(quick.turn())
    await _settle()
    assert words == [": waiting for tiny: all slots are taken"]
    engine.slots = 1
    room.news()
    await _settle()
    assert quick_turn.done()
    assert not slow_turn.done()
    quick.leave()
    stuck.set()
    await _settle()
    assert slow_turn.done()
    slow.leave()


async def test_what_fills_the_room_is_refused_and_says_whose_fault_it_is() -> None:
    engine = _Engine()
    room = engine.room(limit=10)

    def enter(key: str) -> Waiter:
        return room.enter("tiny", key, until_s=1e6, could=engine.could)

    # One key gets most of the room, and leaves some; many keys fill the rest.
    waiters = [enter("greedy") for _ in range(8)]
    with pytest.raises(Full) as greedy:
        enter("greedy")
    assert greedy.value.own
    waiters += [enter("b"), enter("c")]
    with pytest.raises(Full) as full:
        enter("d")
    assert not full.value.own
    for one in waiters:
        one.leave()
    enter("greedy").leave()
    assert room.waiting() == {}


async def test_a_load_that_takes_longer_than_the_time_left_is_refused_at_once() -> None:
    engine = _Engine(route=_loading(load_s=200, since_s=90))
    room = engine.room()
    waiter = room.enter("tiny", until_s=engine.now_s + 120, could=engine.could)
    with pytest.raises(TooLong) as refused:
        await waiter.turn()
    assert refused.value.eta_s == pytest.approx(190)
    waiter.leave()


async def test_a_load_that_becomes_known_to_be_too_long_ends_the_wait() -> None:
    engine = _Engine(route=Route("tiny", ModelState.WAITING))
    room = engine.room()
    waiter = room.enter("tiny", until_s=engine.now_s + 120, could=engine.could)
    turn = asyncio.create_task(waiter.turn())
    await _settle()
    assert not turn.done()
    engine.route = _loading(load_s=150, since_s=100)
    room.news()
    with pytest.raises(TooLong) as refused:
        await turn
    assert refused.value.eta_s == pytest.approx(150)
    waiter.leave()


async def test_a_queue_that_takes_longer_than_the_time_left_is_refused_at_once() -> None:
    engine = _Engine(slots=0, route=_ready(slots=2))
    room = engine.room()
    for _ in range(5):
        room.freed("tiny", 30.0)
    waiters = [room.enter("tiny", until_s=1e6, could=engine.could) for _ in range(6)]
    late = room.enter("tiny", until_s=engine.now_s + 60, could=engine.could)
    with pytest.raises(TooLong) as refused:
        await late.turn()
    assert refused.value.eta_s == pytest.approx(7 * 30 / 2)
    for one in (*waiters, late):
        one.leave()


async def test_the_time_runs_out_and_the_gateway_stops() -> None:
    room = WaitingRoom(lambda _: None)
    waiter = room.enter("tiny", until_s=room.now_s() + 0.05, could=lambda: False)
    with pytest.raises(TooLong) as refused:
        await waiter.turn()
    assert refused.value.eta_s is None
    waiter.leave()
    waiter = room.enter("tiny", until_s=room.now_s() + 60, could=lambda: False)
    turn = asyncio.create_task(waiter.turn())
    await _settle()
    room.stop()
    with pytest.raises(Stopping):
        await turn
    late = room.enter("tiny", until_s=room.now_s() + 60, could=lambda: False)
    with pytest.raises(Stopping):
        await late.turn()
    waiter.leave()
    late.leave()


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (_loading(50, 90), "loading, about 40 s left"),
        (_loading(0, 90), "loading for 10 s"),
        (_loading(4, 90), "loading, longer than usual, about 2 s left"),
        (Route("tiny", ModelState.LOADING), "about to load"),
        (Route("tiny", ModelState.WAITING), "not loaded yet"),
        (Route("tiny", ModelState.FAILED), "its engine failed and is tried again"),
        (_ready(), "all slots are taken"),
    ],
)
def test_progress_says_how_things_stand(route: Route, words: str) -> None:
    engine = _Engine(route=route)
    room = engine.room()
    first = room.enter("tiny", until_s=1e6, could=engine.could)
    second = room.enter("tiny", until_s=1e6, could=engine.could)
    assert first.progress() == f": waiting for tiny: {words}"
    assert second.progress() == f": waiting for tiny: {words}, 1 ahead"


def test_a_name_cannot_break_out_of_its_comment() -> None:
    engine = _Engine()
    engine.route = replace(engine.route, model="x\n\ndata: y")
    room = engine.room()
    waiter = room.enter(engine.route.model, until_s=1e6, could=engine.could)
    assert "\n" not in waiter.progress()
