"""The log: fields and framing of the journal, lines on stderr, libraries included."""

from __future__ import annotations

import io
import logging as stdlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from meshd import logging
from meshd.logging import MESSAGE_IDS, Journal, configure, encode, field_name, in_journal


def decode(datagram: bytes) -> dict[str, str]:
    """The journal's native protocol as its documentation describes it, read the other way."""
    fields: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            name = line
            (size,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        datagram = rest
    return fields


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = stdlib.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers, root.level = handlers, level


class Journald:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.bind(str(path))

    def receive(self) -> dict[str, str]:
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        if descriptors:
            assert data == b""
            self.files += 1
            with os.fdopen(descriptors[0], "rb") as file:
                file.seek(0)
                data = file.read()
        return decode(data)


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    daemon = Journald(tmp_path / "socket")
    journal = Journal(daemon.path)
    configure(environment={}, journal=journal)
    yield daemon
    journal.close()
    daemon.socket.close()


def test_an_event_becomes_fields(journald: Journald) -> None:
    log = structlog.get_logger("meshd.supervisor")
    log.info("unit changes", model="tiny", unit="mesh-llama@tiny.service", reason="slots 1 to 2")
    assert journald.receive() == {
        "MESSAGE": 'unit changes model=tiny unit=mesh-llama@tiny.service reason="slots 1 to 2"',
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "meshd",
        "MESHD_COMPONENT": "supervisor",
        "MESSAGE_ID": MESSAGE_IDS["unit changes"],
        "MESHD_MODEL": "tiny",
        "MESHD_UNIT": "mesh-llama@tiny.service",
        "MESHD_REASON": "slots 1 to 2",
    }


def test_levels_become_priorities(journald: Journald) -> None:
    log = structlog.get_logger()
    log.debug("not at this level")
    for level in ("info", "warning", "error", "critical"):
        getattr(log, level)(level)
    assert [journald.receive()["PRIORITY"] for _ in range(4)] == ["6", "4", "3", "2"]


def test_context_and_tracebacks_are_kept(journald: Journald) -> None:
    structlog.contextvars.bind_contextvars(request="r-1")
    try:
        raise ValueError("boom\nPRIORITY=0")
    except ValueError:
        structlog.get_logger().exception("failed")
    fields = journald.receive()
    assert fields["MESHD_REQUEST"] == "r-1"
    assert fields["PRIORITY"] == "3"
    assert "ValueError: boom\nPRIORITY=0" in fields["MESSAGE"]


def test_what_libraries_log_goes_along(journald: Journald) -> None:
    stdlib.getLogger("aiohttp.server").warning("slow %s", "client")
    stdlib.getLogger("aiohttp.server").info("chatter")
    fields = journald.receive()
    assert (fields["MESSAGE"], fields["MESHD_COMPONENT"]) == ("slow client", "aiohttp.server")
    structlog.get_logger().info("next")
    assert journald.receive()["MESSAGE"] == "next"


def test_what_is_too_long_for_a_datagram_arrives_as_a_file(journald: Journald) -> None:
    long = "x" * 900_000
    # root may have large datagrams: make them small.
    journal = Journal(journald.path)
    journal._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    configure(environment={}, journal=journal)
    structlog.get_logger().info("big", body=long)
    fields = journald.receive()
    journal.close()
    assert fields["MESHD_BODY"] == long
    assert journald.files == 1


def test_a_journal_that_is_away_loses_messages_and_says_how_many(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "socket")
    configure(environment={}, journal=journal)
    log = structlog.get_logger()
    log.info("one")
    log.info("two")
    assert journal.dropped == 2
    daemon = Journald(tmp_path / "socket")
    log.info("three")
    assert daemon.receive()["MESHD_DROPPED"] == "2"
    assert journal.dropped == 0
    daemon.socket.close()
    journal.close()


def test_a_full_journal_does_not_block(tmp_path: Path) -> None:
    daemon = Journald(tmp_path / "socket")
    journal = Journal(daemon.path)
    for _ in range(5000):
        journal.send(b"MESSAGE=x\n")
        if journal.dropped:
            break
    assert journal.dropped > 0
    daemon.socket.close()
    journal.close()


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), st.text()))
def test_any_text_survives_the_framing(fields: dict[str, str]) -> None:
    assert decode(encode(fields)) == {
        name: value.encode("utf-8", "replace").decode() for name, value in fields.items()
    }


@given(st.text())
def test_field_names_are_what_the_journal_takes(key: str) -> None:
    name = field_name(key)
    assert name.isascii()
    assert len(name) <= 64
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
    assert name.startswith("MESHD_")


def test_only_the_descriptor_that_is_the_journals_counts(tmp_path: Path) -> None:
    file = tmp_path / "stream"
    file.write_text("")
    descriptor = os.open(file, os.O_RDWR)
    status = os.fstat(descriptor)
    stream = f"{status.st_dev}:{status.st_ino}"
    try:
        assert in_journal({"JOURNAL_STREAM": stream}, descriptor)
        assert not in_journal({"JOURNAL_STREAM": f"{status.st_dev}:1"}, descriptor)
        assert not in_journal({"JOURNAL_STREAM": "nonsense"}, descriptor)
        assert not in_journal({}, descriptor)
    finally:
        os.close(descriptor)
    assert not in_journal({"JOURNAL_STREAM": stream}, descriptor)


def test_lines_elsewhere() -> None:
    stream = io.StringIO()
    configure(environment={}, stream=stream)
    structlog.get_logger("meshd.gateway").warning("engine does not answer", socket="/run/x y\nz")
    structlog.get_logger("meshd.gateway").debug("quiet")
    (line,) = stream.getvalue().splitlines()
    assert line.split(" ", 1)[1] == (
        'level=warning logger=gateway event="engine does not answer" socket="/run/x y\\nz"'
    )


@pytest.mark.parametrize(("wanted", "lines"), [("debug", 2), ("info", 1), ("error", 0), ("odd", 1)])
def test_the_level_comes_from_the_environment(wanted: str, lines: int) -> None:
    stream = io.StringIO()
    configure(environment={"MESHD_LOG": wanted}, stream=stream)
    log = structlog.get_logger()
    log.debug("a")
    log.info("b")
    assert len(stream.getvalue().splitlines()) == lines


def test_configuring_twice_does_not_log_twice() -> None:
    stream = io.StringIO()
    configure(environment={}, stream=stream)
    configure(environment={}, stream=stream)
    stdlib.getLogger("library").error("once")
    assert len(stream.getvalue().splitlines()) == 1


def test_message_ids_are_distinct_and_well_formed() -> None:
    ids = list(logging.MESSAGE_IDS.values())
    assert len(set(ids)) == len(ids)
    assert all(len(value) == 32 and int(value, 16) for value in ids)
