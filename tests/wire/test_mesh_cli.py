"""`meshd mesh` as a person types it: files on disk, and a brain behind a real control socket."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from meshd.cli.main import main
from meshd.control import NodeNamed
from meshd.mesh.credentials import credentials, remove_tls, write_tls
from meshd.mesh.identity import identity
from meshd.mesh.member_line import MemberLine
from meshd.mesh.secret import parse_secret
from meshd.paths import Paths, under

ME = MemberLine("aaaabbbbccccdddd", "box1", "alive", me=True)
OTHER = MemberLine("hhhhiiiijjjjkkkk", "box2", "alive", models=("qwen",), rtt_ms=1.5)


@pytest.fixture
def paths() -> Iterator[Paths]:
    with tempfile.TemporaryDirectory(prefix="meshd-") as folder:
        paths = under(Path(folder))
        paths.config.parent.mkdir()
        paths.config.write_text(f"mesh: {{name: lab, secret: {folder}/secret}}\n")
        paths.run.mkdir()
        yield paths


def mesh(paths: Paths, *words: str) -> int:
    return main(["--root", str(paths.state.parent), "mesh", *words])


def secret_file(paths: Paths) -> Path:
    return paths.state.parent / "secret"


class Brain:
    """Serves the two calls and remembers what was revoked."""

    def __init__(self) -> None:
        self.revoked: list[str] = []

    async def members(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode((OTHER, ME)))

    async def revoke(self, request: web.Request) -> web.Response:
        self.revoked.append(msgspec.json.decode(await request.read(), type=NodeNamed).node)
        return await self.members(request)

    async def asked(self, paths: Paths, *words: str) -> int:
        app = web.Application()
        app.router.add_get("/v1/mesh/members", self.members)
        app.router.add_post("/v1/mesh/revoke", self.revoke)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(paths.control_socket)).start()
        try:
            return await asyncio.to_thread(mesh, paths, *words)
        finally:
            await runner.cleanup()


def test_a_secret_is_printed(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert mesh(paths, "secret") == 0
    first = capsys.readouterr().out
    assert mesh(paths, "secret") == 0
    assert capsys.readouterr().out != first
    assert parse_secret(first.encode(), "secret")
    assert not secret_file(paths).exists()


def test_a_secret_is_written_once(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert mesh(paths, "secret", "--write") == 0
    out = capsys.readouterr().out
    written = secret_file(paths).read_bytes()
    assert parse_secret(written, "secret").decode() not in out
    assert stat.S_IMODE(secret_file(paths).stat().st_mode) in (0o600, 0o640)
    assert mesh(paths, "secret", "--write") == 1
    assert "left as it is" in capsys.readouterr().err
    assert secret_file(paths).read_bytes() == written


def test_ids_before_and_after_the_first_start(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mesh(paths, "id") == 1
    assert "no key yet" in capsys.readouterr().err
    assert not paths.state.exists(), "asking makes nothing"
    me = identity(paths.state, {})
    assert mesh(paths, "id") == 0
    assert capsys.readouterr().out == f"node  {me.id}\nmesh  none: no {secret_file(paths)}\n"
    assert mesh(paths, "secret", "--write") == 0
    capsys.readouterr()
    held = credentials(paths.state, secret_file(paths), "lab", {})
    assert held is not None
    assert mesh(paths, "id") == 0
    assert capsys.readouterr().out == f"node  {me.id}\nmesh  {held.mesh_id} (lab)\n"


def test_ids_are_those_of_the_node_that_runs(
    paths: Paths, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It may have its key and its secret from systemd, where we cannot look."""
    assert mesh(paths, "secret", "--write") == 0
    identity(paths.state, {})
    held = credentials(tmp_path, secret_file(paths), "other", {})
    assert held is not None
    write_tls(held, paths.run / "tls", datetime.now(UTC))
    capsys.readouterr()
    assert mesh(paths, "id", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "node": held.node_id,
        "mesh": held.mesh_id,
        "name": "lab",
    }
    remove_tls(paths.run / "tls")
    remove_tls(paths.run / "tls")
    assert mesh(paths, "id", "--json") == 0
    assert json.loads(capsys.readouterr().out)["node"] == identity(paths.state, {}).id


@pytest.mark.parametrize("action", [["members"], ["revoke", "box2", "--yes"]])
def test_without_a_brain_it_says_so(
    paths: Paths, capsys: pytest.CaptureFixture[str], action: list[str]
) -> None:
    assert mesh(paths, *action) == 1
    assert "meshd does not run" in capsys.readouterr().err


async def test_members_are_listed(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert await Brain().asked(paths, "members") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "box1", "box2"]
    assert await Brain().asked(paths, "members", "--json") == 0
    listed = msgspec.json.decode(capsys.readouterr().out, type=tuple[MemberLine, ...])
    assert listed == (OTHER, ME)


@pytest.mark.parametrize("text", ["box2", "hhhh", OTHER.id])
async def test_a_node_is_revoked_by_its_whole_id(
    paths: Paths, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    brain = Brain()
    assert await brain.asked(paths, "revoke", text, "--yes") == 0
    assert brain.revoked == [OTHER.id]
    assert f"box2 ({OTHER.id}) is out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [("box", "no node of the mesh"), ("box1", "the node itself"), ("hh", "no node of the mesh")],
)
async def test_nobody_is_revoked_by_mistake(
    paths: Paths, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    brain = Brain()
    assert await brain.asked(paths, "revoke", text, "--yes") == 1
    assert brain.revoked == []
    assert words in capsys.readouterr().err


class Terminal:
    def __init__(self, typed: str, *, there: bool = True) -> None:
        self._typed = typed
        self._there = there

    def isatty(self) -> bool:
        return self._there

    def readline(self) -> str:
        return self._typed


@pytest.mark.parametrize(("typed", "revoked"), [("yes\n", [OTHER.id]), ("y\n", []), ("", [])])
async def test_a_person_is_asked(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, typed: str, revoked: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    brain = Brain()
    assert await brain.asked(paths, "revoke", "box2") == (0 if revoked else 1)
    assert brain.revoked == revoked


async def test_a_script_must_say_yes(
    paths: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n", there=False))
    brain = Brain()
    assert await brain.asked(paths, "revoke", "box2") == 1
    assert brain.revoked == []
    assert "say so with --yes" in capsys.readouterr().err
