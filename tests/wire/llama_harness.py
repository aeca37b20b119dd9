"""A llama-server on a Unix socket that a test may kill, stop, and start again in its place."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.wire.gateway_harness import until

MODEL = Path(__file__).resolve().parents[2] / "share/models/tiny.gguf"
# Its answers begin with thoughts, which the engine ends when their budget is spent.
THINKING = Path(__file__).resolve().parents[1] / "data/thinking.jinja"
SLOTS = 2
# Long enough that no endless answer ends by itself within a test.
CONTEXT = 16384


class Llama:
    """:ivar path: of its socket. :ivar killed: it was, and was not started again."""

    def __init__(self, server: Path, path: Path, options: Sequence[str] = ()) -> None:
        """:param options: of llama-server, beside those that all of them get."""
        self.path = path
        self._command: tuple[str | Path, ...] = (
            server, "--model", MODEL, "--host", path, "--alias", "tiny",
            "--ctx-size", str(CONTEXT), "--parallel", str(SLOTS), "--fit", "off", "--threads", "1",
            "--cache-ram", "0", "--no-ui", "--slots", "--embeddings", "--pooling", "mean",
            *options,
        )  # fmt: skip
        self.process: asyncio.subprocess.Process | None = None
        self.killed = False
        self._http = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path), force_close=True),
            timeout=aiohttp.ClientTimeout(total=20),
        )

    async def start(self) -> None:
        """Returns when it answers. A killed one is waited for first."""
        if self.killed:
            await self.dead()
        await asyncio.to_thread(self.path.unlink, missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self.killed = False
        await until(self.healthy, 60)

    def kill(self) -> None:
        """As the kernel does it: no word to anybody, the socket's file stays."""
        assert self.process is not None
        self.killed = True
        self.process.kill()

    async def dead(self) -> None:
        """Returns when the killed process is gone."""
        assert self.process is not None
        await self.process.wait()

    def stop(self) -> None:
        """It keeps its connections, and says nothing more until `go_on`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def get(self, path: str) -> object:
        async with self._http.get(f"http://engine{path}") as answer:
            answer.raise_for_status()
            return await answer.json()

    async def post(self, path: str, body: bytes) -> bytes:
        """The whole answer's bytes."""
        async with self._http.post(f"http://engine{path}", data=body) as answer:
            text = await answer.read()
            assert answer.status == 200, text
            return text

    async def healthy(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, "llama-server ended"
        try:
            return await self.get("/health") == {"status": "ok"}
        except aiohttp.ClientError:
            return False

    async def busy(self) -> int:
        """Slots in use. Asking is a task of the engine's, which delays what waits for idleness."""
        slots = await self.get("/slots")
        assert isinstance(slots, list)
        return sum(slot["is_processing"] for slot in slots)

    def computed_s(self) -> float:
        """Processor time that it has used."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def close(self) -> None:
        await self._http.close()
        if self.process is not None:
            if self.process.returncode is None:
                self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def llama(server: Path, path: Path, options: Sequence[str] = ()) -> AsyncIterator[Llama]:
    """One that runs."""
    one = Llama(server, path, options)
    try:
        await one.start()
        yield one
    finally:
        await one.close()
