"""Stands before a real engine, and is gone in the middle of its streams."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVENTS = 8
"""So many of a stream pass: in each protocol some with text are among them."""

_PIECE_BYTES = 65536
_EVENT = b"data: "


class _Breaking(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(self.server.engine))
            asking = threading.Thread(target=_copy, args=(self.request, engine), daemon=True)
            asking.start()
            seen = b""
            while piece := engine.recv(_PIECE_BYTES):
                seen += piece
                # An event longer than a line ends in a chunk of its own.
                if seen.count(b"\ndata: ") > EVENTS:
                    break
                self.request.sendall(piece)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)
        asking.join(10)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, engine: Path) -> None:
        self.engine = engine
        super().__init__(str(path), _Breaking)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)


@contextmanager
def breaking_engine(path: Path, engine: Path) -> Iterator[None]:
    """:param path: its socket. :param engine: the real engine's socket."""
    with _Server(path, engine) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(10)
