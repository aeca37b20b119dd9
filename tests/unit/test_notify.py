"""sd_notify: the datagrams that a service manager would get."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.notify import Notifier, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    address = str(tmp_path / "notify")
    if request.param == "abstract":
        address = f"@meshd-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield server


def test_every_message_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier()
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready()
    notifier.status("2 models run;\n1 waits — für dich")
    notifier.watchdog()
    notifier.reloading()
    notifier.stopping()
    after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    got = [manager.recv(4096).decode() for _ in range(5)]
    notifier.close()
    assert got[:3] == ["READY=1", "STATUS=2 models run; 1 waits — für dich", "WATCHDOG=1"]
    assert got[4] == "STOPPING=1"
    first, second = got[3].split("\n")
    assert first == "RELOADING=1"
    name, value = second.split("=")
    assert name == "MONOTONIC_USEC"
    assert before_us <= int(value) <= after_us


def test_a_sentence_cannot_forge_another_assignment(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.status("all well\nSTOPPING=1")
    assert manager.recv(4096) == b"STATUS=all well STOPPING=1"
    notifier.status("x" * 10_000)
    assert len(manager.recv(65536)) == len("STATUS=") + 512
    notifier.close()


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready()
    notifier.status("nobody hears")
    notifier.watchdog()
    assert notifier.watchdog_interval_s is None


def test_a_manager_that_went_away_does_not_matter(manager: socket.socket) -> None:
    notifier = Notifier()
    manager.close()
    notifier.ready()
    notifier.close()
    notifier.ready()


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": "7"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_PID": "7"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_of_another_process_is_not_ours(
    environment: dict[str, str], interval_s: float | None
) -> None:
    assert watchdog_interval_s(environment, 7) == interval_s
