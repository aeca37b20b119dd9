"""A split over two guards on this machine: rpc-server, member's end, host's end, llama-server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshd.engine.locate import RPC_SERVER, SERVER, Place
from meshd.guard.status import GuardStatus, PeerStatus
from meshd.mesh.credentials import Credentials, from_secret, write_tls
from meshd.mesh.identity import of_key

MODEL = Path(__file__).resolve().parents[2] / "share/models/tiny.gguf"
SECRET = b"tqwf-bq5k-ks37-n2yc-vwzz-4g3a-6mfo-p7xd"
OTHER_SECRET = b"hchm-b2vd-7k5w-ufqe-o7ox-2wqd-6d4b-6xgv"
PROTOCOL = "8.0.0"
TERM = 3
START_S = 40.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Returns when it holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition():
        assert loop.time() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Member:
    """A node's identity and files."""

    held: Credentials
    tls: Path

    @property
    def id(self) -> str:
        return self.held.node_id


def identity(folder: Path, secret: bytes = SECRET) -> Member:
    held = from_secret(of_key(Ed25519PrivateKey.generate()), secret, "a mesh")
    write_tls(held, folder, datetime.now(UTC))
    return Member(held, folder)


class Child:
    """A process of this test's, with its output in a file."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self.process = process
        self.output = output

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        if not self.ended:
            self.process.kill()
        await self.process.wait()


Started = AbstractAsyncContextManager[Child]


@asynccontextmanager
async def child(output: Path, *command: str | Path, **environment: str) -> AsyncIterator[Child]:
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
        )
    one = Child(process, output)
    try:
        yield one
    finally:
        await one.kill()


async def guard_status(path: Path) -> GuardStatus | None:
    """None while it does not answer."""
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(path)), timeout=aiohttp.ClientTimeout(total=5)
            ) as http,
            http.get("http://guard/status") as answer,
        ):
            return msgspec.json.decode(await answer.read(), type=GuardStatus)
    except (aiohttp.ClientError, OSError):
        return None


async def guard_metrics(path: Path) -> str:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get("http://guard/metrics") as answer,
    ):
        return await answer.text()


@dataclass
class Split:
    """:ivar door: the member's port, ``local`` the host's, ``front`` rpc-server's."""

    engine: Place
    folder: Path
    host: Member
    member: Member
    front: int = field(default_factory=free_port)
    door: int = field(default_factory=free_port)
    local: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    starts: int = 0

    def _output(self, name: str) -> Path:
        self.starts += 1
        return self.folder / f"{name}-{self.starts}.log"

    def rpc_server(self) -> Started:
        binary = self.engine.binary(RPC_SERVER)
        assert binary is not None
        return child(
            self._output("rpc-server"),
            binary, "--host", "127.0.0.1", "--port", str(self.front), "--threads", "1",
        )  # fmt: skip

    def member_guard(
        self,
        *,
        term: int = TERM,
        protocol: str = PROTOCOL,
        admit: str = "",
        quiet: bool = False,
    ) -> Started:
        return child(
            self._output("member-guard"),
            sys.executable, "-m", "meshd.cli.main", "guard", "big", "member",
            "--listen", f"127.0.0.1:{self.door}", "--front", f"127.0.0.1:{self.front}",
            "--admit", admit or self.host.id, "--term", str(term), "--protocol", protocol,
            "--tls", self.member.tls, "--status", self.folder / "member.sock",
            MESHD_LOG="info" if quiet else "debug",
        )  # fmt: skip

    def host_guard(
        self,
        *,
        term: int = TERM,
        protocol: str = PROTOCOL,
        door: int = 0,
        ubatch_s: float = 20.0,
        who: Member | None = None,
        at: Path | None = None,
        quiet: bool = False,
    ) -> Started:
        return child(
            self._output("host-guard"),
            sys.executable, "-m", "meshd.cli.main", "guard", "big", "host",
            "--local", f"127.0.0.1:{self.local}={self.member.id}@127.0.0.1:{door or self.door}",
            "--term", str(term), "--protocol", protocol, "--ubatch-s", str(ubatch_s),
            "--tls", (who or self.host).tls, "--status", at or self.folder / "host.sock",
            MESHD_LOG="info" if quiet else "debug",
        )  # fmt: skip

    def llama(self, *options: str, rpc: int = 0, port: int = 0) -> Started:
        binary = self.engine.binary(SERVER)
        assert binary is not None
        return child(
            self._output("llama-server"),
            binary, "--model", MODEL, "--host", "127.0.0.1", "--port", str(port or self.http),
            "--rpc", f"127.0.0.1:{rpc or self.local}", "--device", "RPC0", "-ngl", "99",
            "--fit", "off", "--ctx-size", "8192", "--parallel", "1", "--threads", "1",
            "--cache-ram", "0", "--no-ui", *options,
        )  # fmt: skip

    @asynccontextmanager
    async def llama_when_reached(self, *options: str) -> AsyncIterator[Child]:
        """A llama-server that answers, once there is a way to the member."""
        await self.wait_host(lambda peer: peer.reached, "the member to be reached", START_S)
        async with self.llama(*options) as llama:
            await self.healthy(llama)
            yield llama

    async def host_peer(self) -> PeerStatus | None:
        status = await guard_status(self.folder / "host.sock")
        return status.peers[0] if status else None

    async def member_peer(self) -> PeerStatus | None:
        status = await guard_status(self.folder / "member.sock")
        return status.peers[0] if status else None

    async def wait_host(
        self, holds: Callable[[PeerStatus], bool], what: str, timeout_s: float = 20.0
    ) -> PeerStatus:
        """The host's status, once it is so."""
        return await self._wait(self.host_peer, holds, what, timeout_s)

    async def wait_member(
        self, holds: Callable[[PeerStatus], bool], what: str, timeout_s: float = 20.0
    ) -> PeerStatus:
        return await self._wait(self.member_peer, holds, what, timeout_s)

    async def _wait(
        self,
        ask: Callable[[], Awaitable[PeerStatus | None]],
        holds: Callable[[PeerStatus], bool],
        what: str,
        timeout_s: float,
    ) -> PeerStatus:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            peer = await ask()
            if peer is not None and holds(peer):
                return peer
            assert loop.time() < deadline, f"not within {timeout_s:g} s: {what}; last: {peer}"
            await asyncio.sleep(0.05)

    async def healthy(self, llama: Child, port: int = 0) -> None:
        """Returns when llama-server answers."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_S
        while True:
            assert not llama.ended, f"llama-server ended:\n{llama.said()[-2000:]}"
            try:
                async with (
                    aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http,
                    http.get(f"http://127.0.0.1:{port or self.http}/health") as answer,
                ):
                    if answer.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            assert loop.time() < deadline, f"llama-server does not start:\n{llama.said()[-2000:]}"
            await asyncio.sleep(0.1)

    async def complete(self, prompt: str, tokens: int = 24, port: int = 0) -> str:
        """The text that greedy sampling says."""
        body = {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=100)) as http,
            http.post(f"http://127.0.0.1:{port or self.http}/completion", json=body) as answer,
        ):
            said = await answer.json()
            assert answer.status == 200, said
            return str(said["content"])

    @asynccontextmanager
    async def stream(self, tokens: int = 4000) -> AsyncIterator[Stream]:
        """An answer that goes on meanwhile."""
        body = {"prompt": "Once", "n_predict": tokens, "stream": True, "ignore_eos": True}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http,
            http.post(f"http://127.0.0.1:{self.http}/completion", json=body) as answer,
        ):
            one = Stream()
            reading = asyncio.create_task(one.read(answer))
            try:
                yield one
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


@dataclass
class Stream:
    """:ivar at_s: when each event came. :ivar broken: it ended in the middle."""

    at_s: list[float] = field(default_factory=list)
    broken: bool = False
    ended: bool = False

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for line in answer.content:
                if line.startswith(b"data:"):
                    self.at_s.append(loop.time())
        except aiohttp.ClientError:
            self.broken = True
        self.ended = True

    async def past(self, more: int) -> None:
        """Returns when so many more tokens came."""
        goal = len(self.at_s) + more
        await until(lambda: len(self.at_s) >= goal or self.ended, f"{more} more tokens", 60)
        assert not self.ended, "the stream ended"


def make_split(engine: Place, folder: Path) -> Split:
    return Split(engine, folder, identity(folder / "host"), identity(folder / "member"))


@dataclass
class Running:
    """All parts, up."""

    split: Split
    rpc: Child
    member: Child
    host: Child


@asynccontextmanager
async def guarded(engine: Place, folder: Path, **host: float) -> AsyncIterator[Running]:
    """rpc-server and both guards, reached; no llama-server yet."""
    split = make_split(engine, folder)
    async with AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(split.rpc_server())
        member = await stack.enter_async_context(split.member_guard())
        guard = await stack.enter_async_context(split.host_guard(**host))
        await split.wait_host(lambda peer: peer.reached, "the member to be reached", START_S)
        yield Running(split, rpc, member, guard)


class Cable:
    """A relay that can fall silent. :ivar swallow: bytes are taken, and go nowhere.

    :ivar swallowed: likewise, of single connections, by their number from 0.
    :ivar connections: so far.
    """

    def __init__(self, target: int) -> None:
        self.swallow = False
        self.swallowed: set[int] = set()
        self.connections = 0
        self.port = 0
        self._target = target
        self._open: dict[asyncio.Task[None], int] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        number = self._open[task] = self.connections
        self.connections += 1
        ends = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(back)
            await asyncio.gather(
                self._copy(number, reader, back), self._copy(number, there, writer)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            del self._open[task]
            for end in ends:
                end.transport.abort()

    @property
    def open(self) -> list[int]:
        """Numbers; of guards the first is the control channel, and the last carries RPC."""
        return sorted(self._open.values())

    def _swallows(self, number: int) -> bool:
        return self.swallow or number in self.swallowed

    async def _copy(
        self, number: int, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(1 << 16):
            if not self._swallows(number):
                target.write(data)
                await target.drain()
        # An end is no byte: on a cut cable it does not arrive either.
        if self._swallows(number):
            await asyncio.get_running_loop().create_future()
        target.close()

    async def cut(self, number: int | None = None) -> None:
        """End all that is open, or one of it."""
        ending = [task for task, one in self._open.items() if number in (None, one)]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


@asynccontextmanager
async def relay(target: int) -> AsyncIterator[Cable]:
    cable = Cable(target)
    server = await asyncio.start_server(cable.serve, "127.0.0.1", 0)
    cable.port = server.sockets[0].getsockname()[1]
    try:
        yield cable
    finally:
        server.close()
        await cable.cut()
        # Transports that were aborted close in the loop's next turn.
        await asyncio.sleep(0)
