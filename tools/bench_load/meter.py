"""A relay before an rpc-server that counts what passes, call by call, and may be a slower link."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

_READ_BYTES = 1 << 18
_LENGTH = struct.Struct("<Q")


@dataclass
class Count:
    """Of one rpc-server's connections. :ivar calls: by command's number, in protocol 8."""

    to_server_bytes: int = 0
    to_host_bytes: int = 0
    calls: Counter[int] = field(default_factory=Counter)
    replies: int = 0

    def __sub__(self, other: Count) -> Count:
        return Count(
            self.to_server_bytes - other.to_server_bytes,
            self.to_host_bytes - other.to_host_bytes,
            self.calls - other.calls,
            self.replies - other.replies,
        )

    def copy(self) -> Count:
        return Count(
            self.to_server_bytes, self.to_host_bytes, Counter(self.calls), self.replies
        )  # fmt: skip


class Link:
    """What a network card takes, shared by all relays of a host; unlimited where `rate` is None."""

    def __init__(self, bytes_s: float | None) -> None:
        self._rate = bytes_s
        self._lock = threading.Lock()
        self._free_s = 0.0

    def take(self, count: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            begins_s = max(self._free_s, time.monotonic())
            self._free_s = begins_s + count / self._rate
        time.sleep(max(0.0, begins_s - time.monotonic()))


class _Frames:
    """Follows the framing of one direction: whole messages are counted, contents passed over."""

    def __init__(self, command: bool) -> None:
        self._head_bytes = _LENGTH.size + command
        self._head = b""
        self._left = 0

    def feed(self, piece: memoryview) -> list[int]:
        """The commands (0 for replies) of the messages that begin here."""
        begun = []
        while piece:
            if self._left:
                passed = min(self._left, len(piece))
                self._left -= passed
                piece = piece[passed:]
                continue
            wanted = self._head_bytes - len(self._head)
            self._head += bytes(piece[:wanted])
            piece = piece[wanted:]
            if len(self._head) == self._head_bytes:
                (self._left,) = _LENGTH.unpack(self._head[-_LENGTH.size :])
                begun.append(self._head[0] if self._head_bytes > _LENGTH.size else 0)
                self._head = b""
        return begun


class Meter:
    """:ivar port: where the host connects. Read `count` while nothing passes."""

    def __init__(self, target_port: int, link: Link) -> None:
        self.count = Count()
        self._target = target_port
        self._link = link
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                host, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for one in (host, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [host, server]
                for source, target, forth in ((host, server, True), (server, host, False)):
                    threading.Thread(
                        target=self._pump, args=(source, target, forth), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, target: socket.socket, forth: bool) -> None:
        buffer = memoryview(bytearray(_READ_BYTES))
        frames, count = _Frames(forth), self.count
        with suppress(OSError):
            while got := source.recv_into(buffer):
                piece = buffer[:got]
                begun = frames.feed(piece)
                if forth:
                    count.to_server_bytes += got
                    count.calls.update(begun)
                    self._link.take(got)
                else:
                    count.to_host_bytes += got
                    count.replies += len(begun)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
