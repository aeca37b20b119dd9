"""Strangers at the door: who makes room, and what the log says of them."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from meshd.guard.callers import MOST_CALLERS, MOST_SAID, SAID_AGAIN_S, Callers, neighbourhood


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_one_address_does_not_take_the_places_of_others() -> None:
    callers = Callers()
    host = asyncio.create_task(forever())
    callers.add(host, "10.0.0.1")
    flood = [asyncio.create_task(forever()) for _ in range(3 * MOST_CALLERS)]
    for task in flood:
        callers.add(task, "10.0.0.66")
    assert len(callers) == MOST_CALLERS
    kept = callers.tasks()
    assert kept[0] is host
    assert kept[1:] == flood[-(MOST_CALLERS - 1) :]
    assert callers.refused == len(flood) - (MOST_CALLERS - 1)
    for task in (host, *flood):
        task.cancel()
    await asyncio.gather(host, *flood, return_exceptions=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "10.0.0.1", False),
    ],
)
def test_what_one_machine_can_have_many_of_is_one(one: str, other: str, same: bool) -> None:
    assert (neighbourhood(one) == neighbourhood(other)) is same


def test_each_address_and_reason_is_said_once_in_a_while() -> None:
    clock = Clock()
    callers = Callers(clock)
    with capture_logs() as said:
        for _ in range(1000):
            callers.refuse("10.0.0.66", "no certificate")
        callers.refuse("10.0.0.66", "another node")
        clock.now_s = SAID_AGAIN_S
        callers.refuse("10.0.0.66", "no certificate")
    assert [(one["address"], one["why"], one["so_far"]) for one in said] == [
        ("10.0.0.66", "no certificate", 1),
        ("10.0.0.66", "another node", 1001),
        ("10.0.0.66", "no certificate", 1002),
    ]


def test_many_addresses_do_not_flood_the_log() -> None:
    callers = Callers(Clock())
    with capture_logs() as said:
        for number in range(2000):
            callers.refuse(f"10.0.{number // 256}.{number % 256}", "no certificate")
    assert len(said) == MOST_SAID + 1
    assert "nothing more is said" in said[-1]["why"]
    assert callers.refused == 2000
