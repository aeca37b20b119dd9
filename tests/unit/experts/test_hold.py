"""Long work stands still while requests run, but not for ever."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path

from meshd.experts.hold import Hold


@dataclass
class Moment:
    now_s: float = 1000.0
    quiet: bool = True

    def clock(self) -> float:
        return self.now_s

    def hold(self) -> Hold:
        return Hold(lambda: self.quiet, self.clock, most_s=60, then_s=20, patience_s=300)


def test_work_begins_in_a_quiet_moment_or_after_it_was_waited_for() -> None:
    moment = Moment()
    hold = moment.hold()
    assert hold.may_begin()
    moment.quiet = False
    assert not hold.may_begin()
    moment.now_s += 299
    assert not hold.may_begin()
    moment.now_s += 1
    assert hold.may_begin()
    # The next one waits as long again.
    assert not hold.may_begin()
    moment.quiet = True
    assert hold.may_begin()


def test_on_a_node_that_always_has_requests_it_works_a_quarter_of_the_time() -> None:
    moment = Moment()
    hold = moment.hold()
    assert hold.may_begin()
    moment.quiet = False
    works = 0
    for _ in range(1600):
        hold.look()
        works += not hold.held
        moment.now_s += 1
    assert 0.24 <= works / 1600 <= 0.27


def test_it_stands_still_at_once_after_a_quiet_time_and_goes_on_at_once() -> None:
    moment = Moment()
    hold = moment.hold()
    hold.may_begin()
    moment.now_s += 100
    hold.look()
    moment.quiet = False
    hold.look()
    assert hold.held
    moment.quiet = True
    hold.look()
    assert not hold.held


def test_a_thread_waits_and_is_let_go_by_whoever_ends_it() -> None:
    moment = Moment(quiet=False)
    hold = moment.hold()
    hold.look()
    assert hold.held
    stop = threading.Event()
    waits = threading.Thread(target=hold.wait, args=(stop.is_set,))
    waits.start()
    waits.join(0.3)
    assert waits.is_alive()
    stop.set()
    waits.join(10)
    assert not waits.is_alive()
    waits = threading.Thread(target=hold.wait, args=(lambda: False,))
    waits.start()
    hold.end()
    waits.join(10)
    assert not waits.is_alive()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def until(pid: int, states: str) -> None:
    async with asyncio.timeout(10):
        while state_of(pid) not in states:
            await asyncio.sleep(0.001)


async def test_a_child_stands_still_and_goes_on() -> None:
    moment = Moment()
    hold = moment.hold()
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        hold.started(child)
        moment.quiet = False
        hold.look()
        await until(child.pid, "T")
        moment.now_s += 60
        hold.look()
        await until(child.pid, "SR")
        moment.now_s += 20
        hold.look()
        await until(child.pid, "T")
        # One that is started meanwhile stands still, too.
        second = await asyncio.create_subprocess_exec("sleep", "1000")
        try:
            hold.started(second)
            await until(second.pid, "T")
            hold.end()
            await until(second.pid, "SR")
        finally:
            second.kill()
            await second.wait()
        # One that ended is sent nothing.
        hold.started(second)
        hold.look()
        assert hold.held
    finally:
        child.kill()
        await child.wait()
