"""Logging: to the journal with fields where systemd started us, else as lines on stderr.

Every module logs through ``structlog.get_logger(__name__)``; `configure` is called once, by the
verbs that run as a service. The journal's native protocol: systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

# By these, `journalctl MESSAGE_ID=...` finds what matters whatever the words. Random (version 4)
# and never to be changed.
MESSAGE_IDS: Mapping[str, str] = {
    "unit changes": "18e7ae39cb504a2386f3fca8b5e5cd82",
    "reload rejected, the old configuration stays": "268e5c3e85074335bbc9c46c2e0ded09",
    "trial ran out, the configuration before it comes back": "6839f96f06964acbac1069d42ad1cfe6",
    "cannot listen": "ab141c599d634c91ad5de3e4e801a892",
    "engine does not answer": "72f75f9ab5e946caa27f2f32f431a6e7",
    "engine answers again": "1dae4edd5cb9491fa64eab2c191ebfaf",
    "the gateway ended, starting it again": "dd63441f43e24f619adca3b32e7d4d21",
}

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_MAX_VALUE_BYTES = 1024 * 1024
_MAX_NAME = 64  # journald drops longer field names
_SEND_BUFFER_BYTES = 8 * 1024 * 1024  # as sd_journal_send(3) sets it


def in_journal(environment: Mapping[str, str], descriptor: int = 2) -> bool:
    """Whether this descriptor is a stream to the journal (JOURNAL_STREAM in systemd.exec(5)).

    The variable alone proves nothing: it is inherited by what a service starts with stderr
    redirected.
    """
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return False


def field_name(key: str) -> str:
    """``MESHD_`` and the key as the journal allows it: capitals, digits, underscores."""
    return ("MESHD_" + re.sub(r"[^A-Z0-9_]", "_", key.upper()))[:_MAX_NAME]


def encode(fields: Mapping[str, str]) -> bytes:
    """One datagram. A value with a newline goes with its length before it, so it cannot forge
    another field.
    """
    parts: list[bytes] = []
    for name, value in fields.items():
        content = value.encode("utf-8", "replace")[:_MAX_VALUE_BYTES]
        if b"\n" in content:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n")
        else:
            parts.append(name.encode() + b"=" + content + b"\n")
    return b"".join(parts)


def journal_fields(event: Mapping[str, object]) -> dict[str, str]:
    """A log event as journal fields. The message alone must say it all to who reads only that."""
    rest = dict(event)
    message = str(rest.pop("event", ""))
    level = str(rest.pop("level", "info"))
    trace = str(rest.pop("exception", "") or "")
    component = str(rest.pop("logger", "") or "")
    values = {key: _text(value) for key, value in rest.items()}
    words = " ".join([message, *(f"{key}={_quoted(value)}" for key, value in values.items())])
    fields = {
        "MESSAGE": f"{words}\n{trace}" if trace else words,
        "PRIORITY": str(_PRIORITIES.get(level, 6)),
        "SYSLOG_IDENTIFIER": "meshd",
    }
    if component:
        fields["MESHD_COMPONENT"] = component
    if message in MESSAGE_IDS:
        fields["MESSAGE_ID"] = MESSAGE_IDS[message]
    fields.update({field_name(key): value for key, value in values.items()})
    return fields


class JournalLogger:
    """Sends to journald and never waits for it: what it cannot take is counted, not queued."""

    def __init__(self, name: str, journal: Journal) -> None:
        self.name = name
        self._journal = journal

    def msg(self, datagram: bytes) -> None:
        self._journal.send(datagram)

    debug = info = warning = error = critical = exception = log = msg


class Journal:
    """The socket to journald.

    :ivar dropped: messages lost because the journal was away or full.
    """

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.dropped = 0

    def send(self, datagram: bytes) -> None:
        if self.dropped:
            datagram += encode({"MESHD_DROPPED": str(self.dropped)})
        try:
            self._deliver(datagram)
        except OSError:
            self.dropped += 1
        else:
            self.dropped = 0

    def _deliver(self, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._deliver_file(datagram)

    def _deliver_file(self, datagram: bytes) -> None:
        """What is too long for a datagram goes as a sealed memory file."""
        descriptor = os.memfd_create("meshd-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(datagram)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
            self._socket.sendmsg([b""], [rights], 0, self._path)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        self._socket.close()


class _LineLogger:
    def __init__(self, name: str, stream: TextIO) -> None:
        self.name = name
        self._stream = stream

    def msg(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    debug = info = warning = error = critical = exception = log = msg


class _Forward(logging.Handler):
    """What libraries say through the standard library goes the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        logger = structlog.get_logger(record.name)
        level = record.levelname.lower()
        log = getattr(logger, level if level in _PRIORITIES else "info")
        log(message, exc_info=record.exc_info)


def configure(
    *,
    environment: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
    journal: Journal | None = None,
) -> None:
    """Choose where the log goes. ``MESHD_LOG`` sets the level: debug, info (default), warning...

    :param stream: in place of stderr.
    :param journal: log there whatever the environment says.
    """
    environment = os.environ if environment is None else environment
    stream = stream or sys.stderr
    level = environment.get("MESHD_LOG", "info").lower()
    if level not in _PRIORITIES:
        level = "info"
    if journal is None and in_journal(environment) and JOURNAL_SOCKET.exists():
        journal = Journal()
    factory: Callable[..., WrappedLogger]
    if journal is not None:
        target = journal
        factory = lambda *args: JournalLogger(_name(args), target)  # noqa: E731
    else:
        factory = lambda *args: _LineLogger(_name(args), stream)  # noqa: E731
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _add_component,
            structlog.processors.StackInfoRenderer(),
            *(_journal_processors() if journal is not None else _line_processors(stream)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward())
    # Libraries are quieter than we are.
    root.setLevel(logging.INFO if level == "debug" else logging.WARNING)


def _journal_processors() -> list[Processor]:
    return [structlog.processors.format_exc_info, _to_datagram]


def _line_processors(stream: TextIO) -> list[Processor]:
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    if stream.isatty():
        return [
            stamp,
            structlog.dev.ConsoleRenderer(
                colors=not os.environ.get("NO_COLOR"),
                # The default prints local variables, and with them people's prompts.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    return [
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "logger", "event"], drop_missing=True
        ),
    ]


def _add_component(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    name = getattr(logger, "name", "")
    if name:
        event.setdefault("logger", name.removeprefix("meshd."))
    return event


def _to_datagram(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    return encode(journal_fields(event))


def _name(args: tuple[object, ...]) -> str:
    return str(args[0]) if args else ""


def _text(value: object) -> str:
    if isinstance(value, tuple | list | set | frozenset):
        return ", ".join(str(item) for item in value)
    return str(value)


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value or not value else value
