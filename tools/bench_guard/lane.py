"""A client's connection that is timed: exchanges as of one decoded token, and bulk."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import closing

from tools.bench_guard.stand_in import RESULT_BYTES

# Payloads of SET_TENSOR before a computation and its GET_TENSOR: none but the last call; a token
# as it was recorded of tiny.gguf (tests/data/rpc); the same with hidden states of 8,192 floats, as
# of a 70B model; and far more than a token needs.
SHAPES: dict[str, tuple[int, ...]] = {
    "one call with an answer": (),
    "a token, tiny.gguf": (1841, 313, 1841, 309, 313, 1329, 1329, 309),
    "a token, 8,192 hidden": (33073, 313, 1841, 309, 313, 1329, 1329, 309),
    "8 tensors of 16 KiB": (16384,) * 8,
}
_BLOCK = 50
_BULK_BYTES = 64 * 1024**2
_HELLO = struct.pack("<BQ", 14, 24) + bytes(24)
_DEADLINE_S = 60.0


class Lane:
    """:ivar times_s: of the exchanges of each shape. :ivar bulk_bytes_s: of each round."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.times_s: dict[str, list[float]] = {shape: [] for shape in SHAPES}
        self.bulk_bytes_s: list[float] = []
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_DEADLINE_S)
        # A timeout makes each call of Python's two; the deadline is the kernel's.
        self._socket.settimeout(None)
        seconds = struct.pack("ll", int(_DEADLINE_S), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(RESULT_BYTES + 8))
        self._socket.sendall(_HELLO)
        self._receive(36)

    def exchange(self, shape: str) -> None:
        """As llama-server sends them: command, length and payload by a call of send each."""
        tensors = [bytes(size) for size in SHAPES[shape]]
        begun = time.perf_counter()
        for tensor in tensors:
            self._send(6, tensor)
        if tensors:
            self._send(16, bytes(12))
        self._send(8, bytes(312))
        self._receive(RESULT_BYTES + 8)
        self.times_s[shape].append(time.perf_counter() - begun)

    def bulk(self, payload: bytes, times: int) -> None:
        begun = time.perf_counter()
        for _ in range(times):
            self._send(6, payload)
        self._send(8, bytes(312))
        self._receive(RESULT_BYTES + 8)
        self.bulk_bytes_s.append(len(payload) * times / (time.perf_counter() - begun))

    def close(self) -> None:
        self._socket.close()

    def _send(self, command: int, payload: bytes) -> None:
        send = self._socket.sendall
        send(bytes((command,)))
        send(struct.pack("<Q", len(payload)))
        send(payload)

    def _receive(self, count: int) -> None:
        got = 0
        while got < count:
            step = self._socket.recv_into(self._buffer[got:count])
            if not step:
                raise ConnectionError(f"{self.name}: the connection ended")
            got += step


def measure(ports: dict[str, int], exchanges: int, rounds: int) -> list[Lane]:
    """All lanes in turn, some exchanges each, so that what else runs here meets them alike."""
    lanes = [Lane(name, port) for name, port in ports.items()]
    try:
        for shape in SHAPES:
            for _ in range(exchanges // _BLOCK):
                for lane in lanes:
                    for _ in range(_BLOCK):
                        lane.exchange(shape)
        payload = bytes(_BULK_BYTES)
        for _ in range(rounds):
            for lane in lanes:
                lane.bulk(payload, 4)
    finally:
        for lane in lanes:
            with closing(lane):
                pass
    return lanes
