"""Waits that can be ended from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from meshd.gateway.waits import Waits

LONG_S = 600.0


async def test_a_wait_ends_when_its_time_is_up() -> None:
    waits = Waits()
    with pytest.raises(TimeoutError):
        async with waits.within(0.0) as wait:
            await asyncio.sleep(LONG_S)
    assert not wait.given_up


async def test_all_waits_end_when_the_gateway_stops_and_later_ones_at_once() -> None:
    waits = Waits()

    async def one() -> str:
        try:
            async with waits.within(LONG_S) as wait:
                await asyncio.sleep(LONG_S)
        except TimeoutError:
            return f"ended, given up: {wait.given_up}"
        return "not ended"

    tasks = [asyncio.create_task(one()) for _ in range(3)]
    await asyncio.sleep(0)
    waits.stop()
    tasks.append(asyncio.create_task(one()))
    async with asyncio.timeout(10):
        assert [await task for task in tasks] == ["ended, given up: False"] * 4


async def test_only_hopeless_waits_are_given_up() -> None:
    waits, gone, goes_on = Waits(), [False], asyncio.Event()

    async def hopeless() -> bool:
        try:
            async with waits.within(LONG_S, lambda: gone[0]) as wait:
                await asyncio.sleep(LONG_S)
        except TimeoutError:
            return wait.given_up
        return False

    async def other() -> bool:
        async with waits.within(LONG_S):
            await goes_on.wait()
        return True

    tasks = [asyncio.create_task(hopeless()), asyncio.create_task(other())]
    await asyncio.sleep(0)
    waits.reconsider()
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    gone[0] = True
    waits.reconsider()
    async with asyncio.timeout(10):
        assert await tasks[0]
        assert not tasks[1].done()
        goes_on.set()
        assert await tasks[1]


async def test_what_comes_extends_a_wait_but_not_one_that_is_over() -> None:
    waits = Waits()
    async with waits.within(LONG_S) as wait:
        before_s = wait.moved_s
        await asyncio.sleep(0.001)
        waits.extend(wait, 2 * LONG_S)
        assert wait.moved_s > before_s
    with pytest.raises(TimeoutError):
        await _extended(waits, waits.stop)
    waits = Waits()
    with pytest.raises(TimeoutError):
        await _extended(waits, waits.reconsider)


async def _extended(waits: Waits, end: Callable[[], None]) -> None:
    async with waits.within(LONG_S, lambda: True) as wait:
        end()
        waits.extend(wait, LONG_S)
        await asyncio.sleep(LONG_S)


async def test_a_short_wait_ends_in_time_beside_long_ones() -> None:
    waits = Waits()
    async with waits.within(LONG_S):
        with pytest.raises(TimeoutError):
            async with waits.within(0.01):
                await asyncio.sleep(LONG_S)
        async with asyncio.timeout(10):
            with pytest.raises(TimeoutError):
                await _lasting(waits, LONG_S, 0.01)


async def test_each_wait_goes_by_its_own_last_word() -> None:
    waits, ended = Waits(), []

    async def one(name: str, extended_s: float) -> None:
        with pytest.raises(TimeoutError):
            await _lasting(waits, 0.02, extended_s)
        ended.append(name)

    async with asyncio.timeout(10):
        lasting = asyncio.create_task(one("extended", LONG_S))
        await asyncio.gather(one("later", 0.05), one("sooner", 0.01))
    # One timer looked twice, and found only those whose time was up.
    assert ended == ["sooner", "later"]
    assert not lasting.done()
    waits.stop()
    async with asyncio.timeout(10):
        await lasting


async def _lasting(waits: Waits, within_s: float, extended_s: float) -> None:
    async with waits.within(within_s) as wait:
        waits.extend(wait, extended_s)
        await asyncio.sleep(LONG_S)
