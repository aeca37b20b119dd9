"""Serf's agents, LAN profile, followed through their RPC.

The RPC runs over the loopback of the agent's own namespace, so that it is not among the bytes that
are counted. Its protocol: https://github.com/hashicorp/serf/blob/master/docs/agent/rpc.html.markdown
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import msgpack
from pyroute2 import netns

from tools.bench_mesh.fleet import node_name
from tools.bench_mesh.network import address, inside, namespace
from tools.bench_mesh.observed import ALIVE, GONE, Observations, Sight

_RPC = ("127.0.0.1", 7373)
_PORT = 7946
_CONNECT_S = 60.0
_REPLY_S = 30.0
_STATUS = {
    "member-join": ALIVE,
    "member-update": ALIVE,
    "member-failed": GONE,
    "member-leave": GONE,
    "member-reap": GONE,
}
# Serf refuses more than 512 bytes of encoded tags.
_FILLER = "x" * 440


class SerfFleet:
    """:param encrypted: with a shared key (AES-GCM); without, all is in clear."""

    suspects = False
    settles = 0.2

    def __init__(self, folder: Path, *, encrypted: bool) -> None:
        self.name = "Serf, encrypted" if encrypted else "Serf"
        self._key = base64.b64encode(bytes(range(32))).decode() if encrypted else ""
        self._log = (folder / "serf.log").open("ab")
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._rpc: dict[int, _Rpc] = {}
        self.seen = Observations()
        self.record_bytes = len(_FILLER) + len("detail") + len("mark") + 4

    @property
    def pids(self) -> dict[int, int]:
        return {port: process.pid for port, process in self._running.items()}

    async def prepare(self, port: int) -> None:
        """Nothing: an agent takes part as soon as it runs, and it starts at once."""

    async def begin(self, port: int) -> float:
        name, bind = node_name(port), f"{address(port)}:{_PORT}"
        command = ["serf", "agent", f"-node={name}", f"-bind={bind}", "-profile=lan"]
        command += [f"-rpc-addr={_RPC[0]}:{_RPC[1]}", "-log-level=err"]
        command += [f"-tag=detail={_FILLER}", "-tag=mark=0"]
        others = [one for one in (1, 2, 3) if one != port]
        command += [f"-retry-join={address(one)}:{_PORT}" for one in others]
        # Three seconds apart, not thirty: a seed may start later than who looks for it.
        command += ["-retry-interval=3s"]
        command += [f"-encrypt={self._key}"] if self._key else []
        at = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *inside(port), *command, stdout=self._log, stderr=self._log
        )
        self._running[port] = process
        self._rpc[port] = await _connect(port, lambda sight: self.seen.add(sight))
        return at

    async def mark(self, port: int, mark: int) -> float:
        at = time.monotonic()
        # It reports an error when not all have acknowledged it within five seconds.
        with contextlib.suppress(OSError):
            await self._rpc[port].call("tags", {"Tags": {"mark": str(mark)}, "DeleteTags": []})
        return at

    async def leave(self, port: int) -> float:
        at = time.monotonic()
        await self._rpc[port].call("leave")
        await self._end(port)
        return at

    async def kill(self, port: int) -> float:
        at = time.monotonic()
        self._running[port].kill()
        await self._end(port)
        return at

    async def close(self) -> None:
        for port in list(self._running):
            await self.kill(port)
        self._log.close()

    async def _end(self, port: int) -> None:
        await self._running.pop(port).wait()
        await self._rpc.pop(port).close()
        self.seen.forget(node_name(port))


def available() -> bool:
    return shutil.which("serf") is not None


class _Rpc:
    def __init__(
        self, observer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, add: Any
    ) -> None:
        self._observer, self._reader, self._writer, self._add = observer, reader, writer, add
        self._waiting: dict[int, tuple[bool, asyncio.Future[Any]]] = {}
        self._sequence = 0
        self._stream = -1
        self._task = asyncio.create_task(self._read())

    async def call(self, command: str, body: Any = None, *, answers: bool = False) -> Any:
        """:param answers: whether a body follows the header of the reply.

        :raises OSError: the agent refused it.
        """
        self._sequence += 1
        number = self._sequence
        if command == "stream":
            self._stream = number
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = answers, future
        self._writer.write(msgpack.packb({"Command": command, "Seq": number}))
        if body is not None:
            self._writer.write(msgpack.packb(body))
        return await asyncio.wait_for(future, _REPLY_S)

    async def follow(self) -> None:
        await self.call("handshake", {"Version": 1})
        await self.call("stream", {"Type": ",".join(_STATUS)})
        at = time.monotonic()
        members = await self.call("members", answers=True)
        for member in members["Members"]:
            if member["Status"] == "alive":
                self._tell(at, member, ALIVE)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()

    def _tell(self, at: float, member: dict[str, Any], status: str) -> None:
        mark = int(member["Tags"].get("mark", -1))
        self._add(Sight(at, self._observer, member["Name"], status, mark))

    async def _read(self) -> None:
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="replace")
        header: dict[str, Any] | None = None
        while data := await self._reader.read(65536):
            at = time.monotonic()
            unpacker.feed(data)
            for message in unpacker:
                if header is None:
                    header = self._headed(message)
                    continue
                number, header = header["Seq"], None
                if number == self._stream:
                    for member in message["Members"]:
                        self._tell(at, member, _STATUS[message["Event"]])
                else:
                    self._waiting.pop(number)[1].set_result(message)

    def _headed(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The header, if a body follows it."""
        waiting = self._waiting.get(message["Seq"])
        if waiting is None:
            return message
        answers, future = waiting
        if answers and not message["Error"]:
            return message
        del self._waiting[message["Seq"]]
        if not future.done():
            if message["Error"]:
                future.set_exception(OSError(f"Serf: {message['Error']}"))
            else:
                future.set_result(None)
        return None


async def _connect(port: int, add: Any) -> _Rpc:
    deadline = time.monotonic() + _CONNECT_S
    while True:
        netns.pushns(namespace(port))
        try:
            connection = socket.socket()
        finally:
            netns.popns()
        try:
            # Loopback: it connects or refuses at once.
            connection.connect(_RPC)
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
            continue
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection)
        rpc = _Rpc(node_name(port), reader, writer, add)
        await rpc.follow()
        return rpc
