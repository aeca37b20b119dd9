"""Nodes of meshd: a worker process each."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tools.bench_mesh.fleet import node_name
from tools.bench_mesh.network import address, inside
from tools.bench_mesh.observed import Observations, Sight

_PORT = 9338
_SECRET = "k3m9-xq7t-8vbz-2dfw-5hjn-6prs"
_PEERS = 3
_READY_S = 120.0


class MeshdFleet:
    """:param folder: for the nodes' state; a node that starts again finds its own."""

    name = "meshd"
    suspects = True
    # It compares records more rarely when nothing has changed for a minute.
    settles = 1.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._readers: dict[int, asyncio.Task[None]] = {}
        self._ready: dict[int, asyncio.Event] = {}
        self._log = (folder / "meshd.log").open("ab")
        self.seen = Observations()
        self.record_bytes = 0

    @property
    def pids(self) -> dict[int, int]:
        return {port: process.pid for port, process in self._running.items()}

    async def prepare(self, port: int) -> None:
        state = self._folder / node_name(port)
        state.mkdir(exist_ok=True)
        options = {
            "folder": str(state),
            "name": node_name(port),
            "listen": f"{address(port)}:{_PORT}",
            "peers": [f"{address(one)}:{_PORT}" for one in range(1, _PEERS + 1)],
            "secret": _SECRET,
        }
        command = [sys.executable, "-m", "tools.bench_mesh.worker", json.dumps(options)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *inside(port), *command, stdin=pipe, stdout=pipe, stderr=self._log
        )
        self._ready[port] = asyncio.Event()
        self._running[port] = process
        self._readers[port] = asyncio.create_task(self._read(port, process))
        await asyncio.wait_for(self._ready[port].wait(), _READY_S)

    async def begin(self, port: int) -> float:
        return self._tell(port, start=1)

    async def mark(self, port: int, mark: int) -> float:
        return self._tell(port, mark=mark)

    def pause(self, port: int, for_s: float, every_s: float) -> None:
        """Hold its event loop up again and again; 0 s to end it."""
        self._tell(port, pause={"for_s": for_s, "every_s": every_s})

    async def leave(self, port: int) -> float:
        at = self._tell(port, leave=1)
        process = self._running.pop(port)
        await asyncio.wait_for(process.wait(), 30.0)
        await self._ended(port)
        return at

    async def kill(self, port: int) -> float:
        process = self._running.pop(port)
        at = time.monotonic()
        process.kill()
        await process.wait()
        await self._ended(port)
        return at

    async def close(self) -> None:
        for port in list(self._running):
            await self.kill(port)
        self._log.close()
        for port in self._ready:
            shutil.rmtree(self._folder / node_name(port), ignore_errors=True)

    async def _ended(self, port: int) -> None:
        await self._readers.pop(port)
        self.seen.forget(node_name(port))

    def _tell(self, port: int, **command: Any) -> float:
        stdin = self._running[port].stdin
        assert stdin is not None
        at = time.monotonic()
        stdin.write(json.dumps(command).encode() + b"\n")
        return at

    async def _read(self, port: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        observer = node_name(port)
        async for line in process.stdout:
            words = json.loads(line)
            if "ready" in words:
                self.record_bytes = words["ready"]
                self._ready[port].set()
            for subject, status, mark in words.get("seen", ()):
                self.seen.add(Sight(words["at"], observer, subject, status, mark))
