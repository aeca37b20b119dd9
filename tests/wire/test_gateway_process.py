"""`meshd gateway` as a process: signals, draining, and sockets that somebody else opened."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from meshd.gateway.table_file import write_table
from meshd.mesh.tls import server_name
from tests.wire.gateway_harness import (
    CHAT,
    CHUNKED_END,
    DEADLINE_S,
    DONE,
    SSE_HEAD,
    Call,
    answering,
    chunk,
    engine,
    event,
    table_of,
    until,
)
from tests.wire.mesh_harness import caller, member

REPOSITORY = Path(__file__).resolve().parents[2]


def _free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Process:
    base: str
    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession

    async def status(self, path: str) -> int:
        """Of a GET; 0 while nobody answers."""
        try:
            async with self.http.get(self.base + path) as answer:
                return answer.status
        except aiohttp.ClientConnectionError:
            return 0

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), DEADLINE_S)


@asynccontextmanager
async def _gateway(
    folder: Path,
    arguments: Sequence[str],
    base: str,
    *,
    command: Sequence[str] = (),
    **more: object,
) -> AsyncIterator[Process]:
    command = command or [sys.executable, "-m", "meshd.cli.main"]
    process = await asyncio.create_subprocess_exec(
        *command, "gateway", "--routes", str(folder / "routes.json"), *arguments,
        cwd=REPOSITORY, stdin=asyncio.subprocess.DEVNULL, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    timeout = aiohttp.ClientTimeout(total=30)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http:
            started = Process(base, process, http)

            async def up() -> bool:
                assert process.returncode is None
                return await started.status("/healthz") == 200

            await until(up, 20)
            yield started
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_sigterm_lets_a_stream_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    path, port = tmp_path / "e.sock", _free_port()
    write_table(tmp_path / "routes.json", table_of(path))
    finish = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")))
        await finish.wait()
        await call.send(chunk(event("two") + DONE) + CHUNKED_END)

    listen = ["--listen", f"127.0.0.1:{port}"]
    async with (
        engine(path, script),
        _gateway(tmp_path, listen, f"http://127.0.0.1:{port}") as node,
        node.http.post(node.base + CHAT, json={"model": "m", "stream": True}) as answer,
    ):
        assert await answer.content.readany() == event("one")
        node.process.send_signal(signal.SIGTERM)

        async def closed() -> bool:
            return await node.status("/healthz") == 0

        await until(closed)
        assert node.process.returncode is None
        finish.set()
        assert await answer.read() == event("two") + DONE
        assert await node.ended() == 0


async def test_what_outlasts_the_drain_ends_with_an_error(tmp_path: Path) -> None:
    path, port = tmp_path / "e.sock", _free_port()
    write_table(tmp_path / "routes.json", table_of(path))

    async def script(call: Call) -> None:
        if call.nth == 1:
            await call.send(SSE_HEAD + chunk(event("one")))
        await call.hung_up()

    arguments = ["--listen", f"127.0.0.1:{port}", "--drain", "0.3"]
    async with (
        engine(path, script) as scripted,
        _gateway(tmp_path, arguments, f"http://127.0.0.1:{port}") as node,
        node.http.post(node.base + CHAT, json={"model": "m", "stream": True}) as answer,
    ):
        assert await answer.content.readany() == event("one")
        waiting = asyncio.create_task(node.http.post(node.base + CHAT, json={"model": "m"}))
        await until(lambda: len(scripted.calls) == 2)
        node.process.send_signal(signal.SIGTERM)
        rest = await answer.read()
        assert rest.startswith(b'data: {"error"')
        assert b"stopping" in rest
        assert b"[DONE]" not in rest
        async with await waiting as refused:
            assert refused.status == 503
        assert await node.ended() == 0


async def test_sighup_changes_nothing_and_two_addresses_are_served(tmp_path: Path) -> None:
    path, port = tmp_path / "e.sock", _free_port()
    write_table(tmp_path / "routes.json", table_of(path))
    listen = ["--listen", f"127.0.0.1:{port}", f"[::1]:{port}"]
    async with (
        engine(path, answering()),
        _gateway(tmp_path, listen, f"http://127.0.0.1:{port}") as node,
    ):
        for _ in range(3):
            node.process.send_signal(signal.SIGHUP)
            assert await node.status("/readyz") == 200
        async with node.http.get(f"http://[::1]:{port}/readyz") as answer:
            assert answer.status == 200
        node.process.send_signal(signal.SIGTERM)
        assert await node.ended() == 0


async def test_a_socket_of_systemds_is_used_and_kept_open(tmp_path: Path) -> None:
    """As systemd does it: descriptor 3, LISTEN_PID, LISTEN_FDS; connections wait meanwhile."""
    path = tmp_path / "e.sock"
    write_table(tmp_path / "routes.json", table_of(path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        activate = [
            "bash", "-c",
            'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"',
            str(listener.fileno()), sys.executable, "-m", "meshd.cli.main",
        ]  # fmt: skip
        for _ in range(2):
            # --listen would fail: the port is taken. What is passed on goes first.
            arguments = ["--listen", base.removeprefix("http://")]
            async with (
                engine(path, answering()),
                _gateway(
                    tmp_path, arguments, base, command=activate, pass_fds=[listener.fileno()]
                ) as node,
            ):
                async with node.http.post(base + CHAT, json={"model": "m"}) as answer:
                    assert answer.status == 200
                node.process.send_signal(signal.SIGTERM)
                assert await node.ended() == 0
            # Nobody serves now, and still nobody is refused.
            with socket.create_connection(listener.getsockname(), timeout=2):
                pass


async def test_systemds_socket_for_peers_is_told_by_its_name(tmp_path: Path) -> None:
    who, path = member(tmp_path, "n"), tmp_path / "e.sock"
    write_table(
        tmp_path / "routes.json", table_of(path, node=who.id, mesh=who.mesh, tls=str(who.tls))
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as peers,
        socket.create_server(("127.0.0.1", 0)) as clients,
    ):
        base = f"http://127.0.0.1:{clients.getsockname()[1]}"
        door = f"https://127.0.0.1:{peers.getsockname()[1]}"
        activate = [
            "bash", "-c",
            'exec 3<&"$0" 4<&"$1"; export LISTEN_PID=$$ LISTEN_FDS=2 '
            'LISTEN_FDNAMES=peers:mesh-gateway.socket; shift; exec "$@"',
            str(peers.fileno()), str(clients.fileno()), sys.executable, "-m", "meshd.cli.main",
        ]  # fmt: skip
        fds = [peers.fileno(), clients.fileno()]
        async with (
            engine(path, answering()),
            _gateway(tmp_path, [], base, command=activate, pass_fds=fds) as node,
            caller(who) as http,
        ):
            assert await node.status("/healthz") == 200
            name = server_name(who.id, who.mesh)

            async def open_() -> bool:
                async with http.get(door + "/mesh/health", server_hostname=name) as answer:
                    return answer.status == 200

            await until(open_)
            async with http.get(door + "/mesh/routes", server_hostname=name) as answer:
                assert answer.status == 200
            assert await node.status("/mesh/routes") == 404, "not for clients without TLS"
            node.process.send_signal(signal.SIGTERM)
            assert await node.ended() == 0


async def test_an_address_in_use_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "meshd.cli.main", "gateway", "--routes",
            str(tmp_path / "routes.json"), "--listen",
            f"127.0.0.1:{listener.getsockname()[1]}",
            cwd=REPOSITORY, env={**os.environ}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert stderr.startswith(b"meshd: cannot listen on")
    assert stderr.count(b"\n") == 1
