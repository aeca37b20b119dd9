"""Processes of one run: the stub, and every proxy that starts here and answers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.bench_gateway import asked
from tools.bench_gateway.http_lane import Lane, LaneError
from tools.bench_gateway.process_tree import Tree
from tools.bench_gateway.proxies import Place, Proxy
from tools.packages import MissingError

# LiteLLM takes half a minute on a busy machine.
_START_S = 120.0
_STOP_S = 10.0
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Standing:
    """A proxy that answers."""

    proxy: Proxy
    port: int
    tree: Tree


@dataclass(frozen=True, slots=True)
class Bench:
    """:ivar missing: why those that are not there are not, by name."""

    standing: tuple[Standing, ...]
    missing: Mapping[str, str]


@asynccontextmanager
async def started(
    wanted: Mapping[str, Callable[[Place], Proxy]], say: Callable[[str], None]
) -> AsyncIterator[Bench]:
    """Ends all of them with the context."""
    processes: list[asyncio.subprocess.Process] = []
    standing: list[Standing] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as text:
        folder = Path(text)
        try:
            stub, stub_socket = _free_port(), folder / "stub.sock"
            command = (sys.executable, "-m", "tools.bench_gateway.stub", "--port", str(stub))
            upstream = Proxy("the stub", (*command, "--socket", str(stub_socket)))
            await _start(upstream, stub, folder, processes)
            for key, build in wanted.items():
                own = folder / key
                own.mkdir()
                place = Place(own, _free_port(), _free_port(), stub, stub_socket)
                try:
                    proxy = await asyncio.to_thread(build, place)
                    port = place.port if proxy.command else stub
                    say(f"{proxy.name} starts" if proxy.command else "the stub alone")
                    pid = await _start(proxy, port, own, processes)
                except MissingError as error:
                    say(f"{key} is left out: {error}")
                    missing[key] = str(error)
                    continue
                standing.append(Standing(proxy, port, Tree(pid, proxy.children)))
            yield Bench(tuple(standing), missing)
        finally:
            await asyncio.gather(*map(_end, processes))


async def _start(
    proxy: Proxy, port: int, folder: Path, processes: list[asyncio.subprocess.Process]
) -> int | None:
    """:raises MissingError: it ends, or does not answer a request in time."""
    if not proxy.command:
        return None
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *proxy.command,
            cwd=proxy.folder,
            env={**os.environ, **proxy.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    processes.append(process)
    if proxy.after is not None:
        await _until_listening(process, port, log)
        proxy.after()
    deadline = asyncio.get_running_loop().time() + _START_S
    while (why := await _refused(port)) is not None:
        if process.returncode is not None:
            raise MissingError(f"{proxy.name} ended at its start: {_last_line(log)}")
        if asyncio.get_running_loop().time() > deadline:
            raise MissingError(f"{proxy.name} did not answer within {_START_S:.0f} s: {why}")
        await asyncio.sleep(_PAUSE_S)
    return process.pid


class _Once(Lane):
    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.end: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def answered(self) -> None:
        if not self.end.done():
            self.end.set_result(None if self.status == 200 else f"status {self.status}")

    def broke(self, why: str) -> None:
        if not self.end.done():
            self.end.set_result(why)


async def _refused(port: int) -> str | None:
    """None when it answers as it should."""
    lane = _Once(port)
    try:
        async with asyncio.timeout(_STOP_S):
            await lane.open()
            lane.ask(asked.plain(1024))
            return await lane.end
    except (LaneError, TimeoutError) as error:
        return str(error) or "no answer"
    finally:
        lane.close()


async def _until_listening(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + _START_S
    while True:
        lane = Lane(port)
        try:
            await lane.open()
        except LaneError as error:
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise MissingError(f"{error}: {_last_line(log)}") from None
            await asyncio.sleep(_PAUSE_S)
        else:
            lane.close()
            return


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its whole session: some start others that outlive them."""
    for number, wait_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            await asyncio.wait_for(process.wait(), wait_s)
        except TimeoutError:
            continue
