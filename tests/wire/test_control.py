"""The control socket: what the command line hears when things are not as they should be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from meshd.config.load import SourceFile
from meshd.control import ControlClient, ControlServer, NotRunningError
from meshd.errors import UserError
from meshd.report import PlanReport
from meshd.status import NodeStatus

STATUS = NodeStatus("box", "auto", "fine", (), 1, "", (), "", (), ())


class Brain:
    """Answers as told, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refusal = ""
        self.on_trial: tuple[SourceFile, ...] | None = None
        self.slow = False

    def _say(self, word: str) -> None:
        self.asked.append(word)
        if self.refusal:
            raise UserError(self.refusal)

    def status(self) -> NodeStatus:
        self._say("status")
        return STATUS

    async def preview(self, files: tuple[SourceFile, ...]) -> PlanReport:
        self._say(f"preview {files[0].text}")
        return PlanReport((), ())

    async def reload(self) -> None:
        if self.slow:
            await asyncio.sleep(3600)
        self._say("reload")

    async def begin_trial(self, files: tuple[SourceFile, ...], timeout_s: float) -> None:
        self._say(f"begin {timeout_s:g}")
        self.on_trial = files

    def trial(self) -> tuple[SourceFile, ...] | None:
        return self.on_trial

    async def end_trial(self, *, keep: bool) -> None:
        self._say(f"end {keep}")


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="meshd-") as folder:
        yield Path(folder) / "meshd.sock"


@asynccontextmanager
async def served(path: Path, brain: Brain) -> AsyncIterator[ControlClient]:
    server = ControlServer(path, brain)
    await server.start()
    try:
        yield ControlClient(path, deadline_s=5.0)
    finally:
        await server.close()


async def test_every_call_arrives(socket_path: Path) -> None:
    brain = Brain()
    files = (SourceFile("/etc/mesh/mesh.yaml", "text"),)
    async with served(socket_path, brain) as client:
        assert await client.status() == STATUS
        assert await client.plan(files) == PlanReport((), ())
        assert await client.reload() == STATUS
        await client.begin_trial(files, 7.0)
        assert (await client.trial()).files == files
        await client.end_trial(keep=True)
        await client.end_trial(keep=False)
    for word in ("preview text", "reload", "begin 7", "end True", "end False"):
        assert word in brain.asked


async def test_a_refusal_keeps_its_words(socket_path: Path) -> None:
    brain = Brain()
    async with served(socket_path, brain) as client:
        brain.refusal = "mesh.yaml:3:1: unknown key"
        with pytest.raises(UserError, match=r"mesh\.yaml:3:1: unknown key"):
            await client.reload()


async def test_nothing_on_trial(socket_path: Path) -> None:
    async with served(socket_path, Brain()) as client:
        with pytest.raises(UserError, match="nothing is on trial"):
            await client.trial()


async def test_nobody_listens(socket_path: Path) -> None:
    with pytest.raises(NotRunningError, match="does not run"):
        await ControlClient(socket_path).status()


async def test_a_stale_socket_is_nobody_and_is_replaced(socket_path: Path) -> None:
    async with served(socket_path, Brain()):
        pass
    left = await asyncio.start_unix_server(lambda *_: None, path=socket_path)
    left.close()
    await left.wait_closed()
    with contextlib.suppress(FileExistsError):
        os.mknod(socket_path, stat.S_IFSOCK | 0o600)
    with pytest.raises(NotRunningError):
        await ControlClient(socket_path).status()
    async with served(socket_path, Brain()) as client:
        assert await client.status() == STATUS


async def test_only_owner_and_group_can_open_it(socket_path: Path) -> None:
    async with served(socket_path, Brain()):
        assert _mode(socket_path) == 0o660


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_brain_that_hangs_is_given_up(socket_path: Path) -> None:
    brain = Brain()
    brain.slow = True
    async with served(socket_path, brain):
        with pytest.raises(UserError, match="did not answer in"):
            await ControlClient(socket_path, deadline_s=0.3).reload()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": [{"path": 1}]}'])
async def test_what_is_not_understood_is_said(socket_path: Path, body: bytes) -> None:
    async with served(socket_path, Brain()):
        connector = aiohttp.UnixConnector(path=str(socket_path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post("http://meshd/v1/plan", data=body) as response,
        ):
            assert response.status == 400
            assert "not understood" in (await response.json())["error"]


async def test_a_brain_of_another_version_is_named_as_such(socket_path: Path) -> None:
    async with served(socket_path, Brain()) as client:
        with pytest.raises(UserError, match="different versions"):
            # What this answers lacks a report's fields, as an older one's status lacks newer ones.
            await client._call("GET", "/v1/status", PlanReport)
