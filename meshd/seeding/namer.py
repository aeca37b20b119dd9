"""Stores tensors as rpc-server would: by sending them to one that runs here for nothing else.

A cached tensor's name is the FNV-1a 64 of its content, one multiplication after another for every
byte: hopeless in Python, and no kept library has it. `ggml-rpc-server --cache` computes it for any
tensor that it is sent with the cache flag, and writes the file. Protocol: ggml-rpc.cpp, major 8
(the same in 7 for the commands used here).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from meshd.errors import UserError

MAJORS = (7, 8)
CHUNK_BYTES = 1 << 20

_ALLOC_BUFFER, _BUFFER_GET_BASE, _SET_TENSOR, _HELLO = 0, 3, 6, 14
_FRAME = struct.Struct("<BQ")
_U64 = struct.Struct("<Q")
_REQUEST_BUFFER = struct.Struct("<IQ")
_BUFFER = struct.Struct("<QQ")
# id, type, buffer, ne[4], nb[4], op, op_params, flags, src[10], view_src, view_offs, data, name,
# use_count
_TENSOR = struct.Struct("<QIQ4I4II64si10QQQQ64si")
_I8 = 24  # GGML_TYPE_I8: one byte an element, so that any content is a whole number of them
_U32_MAX = (1 << 32) - 1
_HELLO_BYTES = 24
_REPLY_BYTES_MAX = 1 << 16

_START_S = 20.0
# A gigabyte is hashed and written in a few seconds; a disk that hangs for longer is given up.
_SILENCE_S = 60.0
_STOP_S = 2.0
_TRIES = 5
_WORDS_MAX = 200


class NamerError(UserError):
    """The rpc-server could not be started, ended, or did not store what it was sent."""


@dataclass(frozen=True, slots=True)
class Stored:
    """:ivar path: in the namer's own folder; the caller moves it away."""

    path: Path
    size_bytes: int
    sha256: str

    @property
    def cache_name(self) -> str:
        return self.path.name


class Namer:
    """A context: the child runs inside of it. Blocking; for one thread at a time."""

    def __init__(self, rpc_server: Path, folder: Path, largest_bytes: int = 0) -> None:
        """:param folder: empty, and of the file system to which the files are to be moved.

        :param largest_bytes: of the tensors to come; twice as much memory is taken.
        """
        self._binary = rpc_server
        self._folder = folder
        self._output = folder / "log"
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._largest = largest_bytes
        self._buffer: tuple[int, int, int] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def store(self, size_bytes: int, chunks: Iterable[bytes]) -> Stored:
        """Store one tensor; its file is whole, synced and was read once.

        :param chunks: of `size_bytes` in all.
        :raises NamerError: nothing was stored, or something else than was sent: the disk is full.
        :raises OSError: reading `chunks` failed; the namer is of no more use then.
        """
        cache = self._folder / "rpc"
        for left in cache.iterdir():
            left.unlink()
        try:
            sha256 = self._send(size_bytes, chunks)
        except TimeoutError as error:
            raise NamerError(f"rpc-server is silent: {error}") from error
        except (ConnectionError, EOFError) as error:
            raise NamerError(f"rpc-server ended: {self._last_words() or error}") from error
        files = list(cache.iterdir())
        if len(files) != 1 or not re.fullmatch(r"[0-9a-f]{16}", files[0].name):
            raise NamerError(f"rpc-server stored nothing: {self._last_words()}")
        path = files[0]
        # It does not look whether its own writing succeeds.
        written = path.stat().st_size
        if written != size_bytes:
            raise NamerError(
                f"rpc-server wrote {written} of {size_bytes} bytes", hint="is the disk full?"
            )
        with path.open("rb+") as file:
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise NamerError("rpc-server wrote something else than it was sent")
        return Stored(path, size_bytes, sha256)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None

    def _start(self) -> None:
        (self._folder / "rpc").mkdir(exist_ok=True)
        for _ in range(_TRIES):
            port = _free_port()
            command = [
                str(self._binary), "--host", "127.0.0.1", "--port", str(port),
                "--device", "CPU", "--threads", "1", "--cache",
            ]  # fmt: skip
            environment = {"LLAMA_CACHE": str(self._folder), "HOME": str(self._folder)}
            try:
                with self._output.open("wb") as output:
                    self._child = subprocess.Popen(  # the engine; its path is no user's word
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                    )
            except OSError as error:
                raise NamerError(
                    f"{self._binary}: cannot be started: {error.strerror}",
                    hint="meshd engine install",
                ) from error
            self._socket = self._connect(port)
            if self._socket is not None:
                break
            # Somebody else took the port in between; or it ends for another reason each time.
            self.close()
        else:
            raise NamerError(f"rpc-server does not start: {self._last_words()}")
        self._greet()

    def _connect(self, port: int) -> socket.socket | None:
        """None when the child ended."""
        assert self._child is not None
        until_s = time.monotonic() + _START_S
        while self._child.poll() is None:
            # It listens a moment after it was started, and says so to nobody.
            with contextlib.suppress(ConnectionRefusedError):
                connection = socket.create_connection(("127.0.0.1", port), _SILENCE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            if time.monotonic() > until_s:
                raise NamerError(f"rpc-server does not listen after {_START_S:.0f} s")
            time.sleep(0.01)
        return None

    def _greet(self) -> None:
        try:
            answer = self._call(_HELLO, bytes(_HELLO_BYTES))
        except (OSError, EOFError) as error:
            raise NamerError(f"rpc-server does not answer: {self._last_words()}") from error
        if len(answer) < 3 or answer[0] not in MAJORS:
            shown = ".".join(str(number) for number in answer[:3])
            raise NamerError(
                f"{self._binary} speaks RPC {shown}; known are {MAJORS[0]} to {MAJORS[-1]}",
                hint="is meshd older than the engine?",
            )

    def _send(self, size_bytes: int, chunks: Iterable[bytes]) -> str:
        assert self._socket is not None
        buffer, base = self._room(size_bytes)
        # A tensor's extents are 32 bits wide; larger contents lie in rows.
        rows = -(-size_bytes // _U32_MAX)
        while size_bytes % rows:
            rows += 1
        width = size_bytes // rows
        whole = min(size_bytes, _U32_MAX)
        tensor = _TENSOR.pack(
            1, _I8, buffer, width, rows, 1, 1, 1, width, whole, whole, 0, b"", 0,
            *([0] * 10), 0, 0, base, b"seed", 0,
        )  # fmt: skip
        head = tensor + b"\1" + _U64.pack(0)
        self._socket.sendall(_FRAME.pack(_SET_TENSOR, len(head) + size_bytes) + head)
        digest, left = hashlib.sha256(), size_bytes
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise NamerError(f"more than the {size_bytes} bytes of a tensor")
            self._socket.sendall(chunk)
            digest.update(chunk)
        if left:
            raise NamerError(f"{left} bytes of a tensor are missing", hint="is its file cut short?")
        # SET_TENSOR has no answer; the next call's comes after it.
        self._call(_BUFFER_GET_BASE, _U64.pack(buffer))
        return digest.hexdigest()

    def _room(self, size_bytes: int) -> tuple[int, int]:
        """A buffer's handle and address; one is kept for all tensors that fit."""
        if self._buffer is not None and self._buffer[2] >= size_bytes:
            return self._buffer[:2]
        # A smaller one before it goes with the connection: whether freeing has an answer differs
        # between versions.
        size_bytes = max(size_bytes, self._largest)
        handle, got = _BUFFER.unpack(self._call(_ALLOC_BUFFER, _REQUEST_BUFFER.pack(0, size_bytes)))
        if not handle or got < size_bytes:
            raise NamerError(f"rpc-server has no {size_bytes} bytes of memory for a tensor")
        (base,) = _U64.unpack(self._call(_BUFFER_GET_BASE, _U64.pack(handle)))
        self._buffer = handle, base, size_bytes
        return handle, base

    def _call(self, command: int, payload: bytes) -> bytes:
        assert self._socket is not None
        self._socket.sendall(_FRAME.pack(command, len(payload)) + payload)
        (length,) = _U64.unpack(self._receive(_U64.size))
        if length > _REPLY_BYTES_MAX:
            raise EOFError(f"an answer of {length} bytes")
        return self._receive(length)

    def _receive(self, count: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise EOFError("the connection was closed")
            data += more
        return data

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._output.read_text(errors="replace").splitlines()
            return next((line[:_WORDS_MAX] for line in reversed(lines) if line.strip()), "")
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
