"""Speaks RPC like an rpc-server, one connection at a time, and computes nothing."""

from __future__ import annotations

import socket
import struct
import sys

RESULT_BYTES = 16 * 1024
_BUFFER_BYTES = 4 * 1024**2
_ANSWERS = {14: bytes([8, 0, 0]) + bytes(25), 15: struct.pack("<I", 1), 8: bytes(RESULT_BYTES)}


def serve(port: int) -> None:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                _answer(connection, buffer)


def _answer(connection: socket.socket, buffer: memoryview) -> None:
    try:
        while _exactly(connection, buffer, 9):
            command, length = struct.unpack_from("<BQ", buffer)
            while length:
                step = min(length, len(buffer))
                if not _exactly(connection, buffer, step):
                    return
                length -= step
            answer = _ANSWERS.get(command)
            if answer is not None:
                # As rpc-server does it: two calls of send.
                connection.sendall(struct.pack("<Q", len(answer)))
                connection.sendall(answer)
    except OSError:
        pass


def _exactly(connection: socket.socket, buffer: memoryview, count: int) -> bool:
    got = 0
    while got < count:
        step = connection.recv_into(buffer[got:count])
        if not step:
            return False
        got += step
    return True


if __name__ == "__main__":
    serve(int(sys.argv[1]))
