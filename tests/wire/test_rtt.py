"""Real packets and real connections, in network namespaces of the test's own."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from meshd.rtt.aside import Aside
from meshd.rtt.ping import Pinger
from meshd.rtt.prober import Prober
from meshd.rtt.tcp_info import TcpInfo
from meshd.rtt.window import RttWindow, Sample, Samples

_CLONE_NEWNET = 0x40000000
_DEADLINE_S = 15.0
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def namespace() -> Iterator[None]:
    """This thread, and those that it starts, in a network of their own where pings are allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a network namespace")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if _LIBC.unshare(_CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
            allow_pings("0 2147483647")
            yield
        finally:
            assert _LIBC.setns(home, _CLONE_NEWNET) == 0
    finally:
        os.close(home)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.02)


class Answers:
    """What a `Pinger` told."""

    def __init__(self) -> None:
        self.came: list[tuple[Hashable, float]] = []
        self.pinger = Pinger(lambda key, rtt_ms: self.came.append((key, rtt_ms)), time.monotonic)
        assert self.pinger.families() == {4, 6}

    async def ask(self, key: Hashable, ip: str) -> float:
        before = len(self.came)
        assert self.pinger.send(key, ip)
        await until(lambda: len(self.came) > before)
        assert self.came[-1][0] == key
        return self.came[-1][1]


def answer_no_pings() -> None:
    Path("/proc/sys/net/ipv4/icmp_echo_ignore_all").write_text("1")


def allow_pings(groups: str) -> None:
    """:param groups: first and last group id; an empty range is ``1 0``."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text(groups)


class Responder:
    """Answers pings in the kernel's place, after a delay, or with what `reply` makes of them."""

    def __init__(self) -> None:
        answer_no_pings()
        self.delay_s = 0.0
        self.reply: Callable[[bytes], list[bytes]] = lambda right: [right]
        self.sources = ["127.0.0.1"]
        self._stop = threading.Event()
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._raw], [], [], 0.1)[0]:
                continue
            packet = self._raw.recv(2000)[20:]
            if packet[0] != 8:
                continue
            time.sleep(self.delay_s)
            right = with_checksum(b"\0\0\0\0" + packet[4:])
            for source in self.sources:
                out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
                with out:
                    out.bind((source, 0))
                    for answer in self.reply(right):
                        out.sendto(answer, ("127.0.0.1", 0))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._raw.close()


def with_checksum(packet: bytes) -> bytes:
    """RFC 1071."""
    packet = packet[:2] + b"\0\0" + packet[4:]
    padded = packet + b"\0" * (len(packet) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:2] + struct.pack("!H", ~total & 0xFFFF) + packet[4:]


@pytest.fixture
def responder(namespace: None) -> Iterator[Responder]:
    found = Responder()
    yield found
    found.close()


@contextmanager
def connection(family: socket.AddressFamily, host: str, listen: str = "") -> Iterator[int]:
    """One with traffic. Yields the server's port."""
    kind = socket.AF_INET6 if ":" in (listen or host) else family
    dual = kind != family
    with (
        socket.create_server((listen or host, 0), family=kind, dualstack_ipv6=dual) as server,
        socket.socket(kind if dual else family) as client,
    ):
        client.settimeout(5)
        client.connect((f"::ffff:{host}" if dual else host, server.getsockname()[1]))
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"x" * 1000)
            accepted.recv(1000)
            yield server.getsockname()[1]


@pytest.mark.usefixtures("namespace")
async def test_pings_to_both_loopbacks() -> None:
    answers = Answers()
    try:
        assert 0.0 < await answers.ask("four", "127.0.0.1") < 1000.0
        assert 0.0 < await answers.ask("six", "::1") < 1000.0
        assert answers.pinger.next_expiry_s() is None
    finally:
        answers.pinger.close()


async def test_a_window_of_real_pings_rises_and_falls_with_the_delay(responder: Responder) -> None:
    answers = Answers()
    samples = Samples()

    async def window_after(delay_s: float) -> RttWindow:
        nonlocal samples
        responder.delay_s = delay_s
        for _ in range(6):
            samples = samples.add(Sample(time.monotonic(), await answers.ask("a", "127.0.0.1")))
        found = samples.window(time.monotonic())
        assert found is not None
        return found

    try:
        near = await window_after(0.0)
        far = await window_after(0.12)
        assert near.median_ms < 100.0
        assert far.min_ms >= 120.0, "old samples have left"
        assert (await window_after(0.0)).median_ms < 100.0
    finally:
        answers.pinger.close()


@pytest.mark.usefixtures("namespace")
async def test_a_loop_that_was_held_up_is_no_distance() -> None:
    answers = Answers()
    try:
        # The kernel begins to stamp packets a moment after the first socket wants it.
        await answers.ask("first", "127.0.0.1")
        answers.came.clear()
        assert answers.pinger.send("a", "127.0.0.1")
        time.sleep(0.5)  # noqa: ASYNC251 - what engines do to the loop
        await until(lambda: bool(answers.came))
        assert answers.came[0][1] < 250.0
    finally:
        answers.pinger.close()


async def test_garbage_and_forged_answers_are_not_believed(responder: Responder) -> None:
    def garbage(right: bytes) -> list[bytes]:
        head, token = right[:8], right[8:]
        return [
            with_checksum(head),
            with_checksum(head + token[:-1]),
            with_checksum(head + token + b"x"),
            with_checksum(head + bytes(16)),
            with_checksum(head[:6] + b"\xff\xff" + token),
            with_checksum(b"\0\1" + right[2:]),
            with_checksum(head + token * 100),
            with_checksum(b"\0\0\0\0"),
        ]

    answers = Answers()
    try:
        responder.reply = garbage
        assert answers.pinger.send("a", "127.0.0.1")
        responder_done = answers.pinger.next_expiry_s()
        assert responder_done is not None
        await until(lambda: time.monotonic() >= responder_done)
        assert answers.came == []
        assert answers.pinger.expire() == ("a",)

        # From another address nothing counts; from the right one, once.
        responder.reply = lambda right: [right, right]
        responder.sources = ["127.0.0.2", "127.0.0.1"]
        assert 0.0 < await answers.ask("b", "127.0.0.1") < 1000.0
        responder.sources = ["127.0.0.1"]
        responder.reply = lambda right: [right]
        await answers.ask("c", "127.0.0.1")
        assert [key for key, _ in answers.came] == ["b", "c"]
    finally:
        answers.pinger.close()


@pytest.mark.usefixtures("namespace")
async def test_what_cannot_be_sent_is_said_and_pending_ones_are_bounded() -> None:
    answers = Answers()
    try:
        assert not answers.pinger.send("no route", "10.99.0.1")
        assert not answers.pinger.send("no route", "2001:db8::1")
        assert not answers.pinger.send("no address", "nonsense")
        answer_no_pings()
        sent = sum(answers.pinger.send(number, "127.0.0.1") for number in range(500))
        assert sent == 64
    finally:
        answers.pinger.close()


@pytest.mark.parametrize(
    ("family", "host", "listen"),
    [
        (socket.AF_INET, "127.0.0.1", ""),
        (socket.AF_INET6, "::1", ""),
        (socket.AF_INET, "127.0.0.1", "::"),
    ],
)
async def test_tcp_info_of_a_connection(
    family: socket.AddressFamily, host: str, listen: str
) -> None:
    with connection(family, host, listen) as port:
        found = await TcpInfo().read({port})
        assert [(one.ip, one.port) for one in found] == [(host, port)]
        assert 0.0 < found[0].rtt_ms < 1000.0
        assert found[0].min_ms is not None
        assert 0.0 < found[0].min_ms <= found[0].rtt_ms + 1000.0
        assert found[0].segments > 0
        assert await TcpInfo().read({port + 1 if port < 65535 else port - 1}) == ()


@pytest.mark.usefixtures("namespace")
async def test_forbidden_pings_are_said_once_and_connections_still_count() -> None:
    allow_pings("1 0")
    with connection(socket.AF_INET, "127.0.0.1") as port, capture_logs() as logs:
        changes: list[int] = []
        prober = Prober("me", on_change=lambda: changes.append(1))
        prober.follow({"a": (f"127.0.0.1:{port}",), "b": ("[::1]:9",)}, frozenset({"b"}))
        running = asyncio.create_task(prober.run())
        try:
            await until(lambda: "a" in prober.windows())
            prober.follow({"a": (f"127.0.0.1:{port}",)}, frozenset({"a"}))
            assert prober.best_address("a") == f"127.0.0.1:{port}"
            assert prober.best_address("b") is None
            assert [one.peer for one in prober.records()] == ["a"]
            assert changes == [1]
        finally:
            await stopped(running)
        assert [log["event"] for log in logs if "forbidden" in log["event"]] == [
            "ping sockets are forbidden, TCP handshakes tell how far the others are"
        ]


@pytest.mark.usefixtures("namespace")
async def test_where_pings_are_forbidden_handshakes_measure_what_listens() -> None:
    allow_pings("1 0")
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        prober = Prober("me")
        running = asyncio.create_task(prober.run())
        try:
            prober.follow(
                {
                    "four": (f"127.0.0.1:{four.getsockname()[1]}",),
                    "six": (f"[::1]:{six.getsockname()[1]}",),
                    "deaf": ("127.0.0.1:9",),
                }
            )
            await until(lambda: set(prober.windows()) == {"four", "six"})
            assert all(0 < one.median_ms < 1000 for one in prober.windows().values())
            accepted, _ = four.accept()
            with accepted:
                accepted.settimeout(_DEADLINE_S)
                assert accepted.recv(1) == b"", "it says nothing and goes"
        finally:
            await stopped(running)


@pytest.mark.usefixtures("namespace")
async def test_a_prober_measures_both_versions_and_lets_go_of_peers_that_vanish() -> None:
    prober = Prober("me")
    peers = {"four": ("127.0.0.1:9",), "six": ("[::1]:9",), "dead": ("10.99.0.1:9",)}
    running = asyncio.create_task(prober.run())
    try:
        prober.follow(peers, frozenset({"six"}))
        await until(lambda: set(prober.windows()) == {"four", "six"})
        assert [one.peer for one in prober.records()] == ["six", "four"]
        prober.follow({"four": ("127.0.0.1:9",)})
        assert set(prober.windows()) == {"four"}
        assert [one.peer for one in prober.records()] == ["four"]
        prober.follow({})
        assert prober.records() == ()
        prober.follow(peers)
        await until(lambda: set(prober.windows()) == {"four", "six"})
    finally:
        await stopped(running)


@pytest.mark.usefixtures("namespace")
async def test_a_name_server_that_hangs_holds_nobody_up() -> None:
    release = threading.Event()

    def hang(name: str) -> list[str]:
        release.wait(60)
        return ["127.0.0.1"]

    prober = Prober("me", resolve=hang)
    prober.follow({"named": ("box.test:9",), "plain": ("127.0.0.1:9",)}, frozenset({"named"}))
    running = asyncio.create_task(prober.run())
    try:
        await until(lambda: set(prober.windows()) == {"plain"})
        release.set()
        await until(lambda: set(prober.windows()) == {"plain", "named"})
        assert prober.best_address("named") == "box.test:9"
    finally:
        release.set()
        await stopped(running)


async def test_a_call_that_hangs_is_left_behind_and_not_piled_up() -> None:
    release = threading.Event()
    aside = Aside("test", 0.05)
    try:
        with pytest.raises(TimeoutError):
            await aside.call(lambda: release.wait(60))
        threads = threading.active_count()
        with pytest.raises(TimeoutError, match="has not come back"):
            await aside.call(lambda: 1)
        assert threading.active_count() == threads
    finally:
        release.set()

    async def works() -> bool:
        try:
            return await aside.call(lambda: 7) == 7
        except TimeoutError:
            return False

    async with asyncio.timeout(_DEADLINE_S):
        while not await works():
            await asyncio.sleep(0.02)
    with pytest.raises(ZeroDivisionError):
        await aside.call(lambda: 1 // 0)


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
