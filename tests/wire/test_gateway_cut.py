"""A node whose link is cut, wholly or one way, in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshd.gateway.routes import ModelState, Peer, Route, RoutingTable, Target
from meshd.gateway.table_file import write_table
from meshd.mesh.tls import server_name
from tests.wire.gateway_harness import Call, answering, engine, plain, until
from tests.wire.mesh_harness import Member as Identity
from tests.wire.mesh_harness import Node, caller, member, node, table

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 9338
_numbers = itertools.count()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=10)


@dataclass(frozen=True)
class Space:
    """A network namespace with one link to here."""

    name: str
    address: str

    def drop(self, *hooks: str) -> None:
        """Let packets vanish there, without a word: `input`, `output` or both."""
        _run("ip", "netns", "exec", self.name, "nft", "add", "table", "inet", "cut")
        for hook in hooks:
            _run(
                "ip", "netns", "exec", self.name, "nft",
                f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}",
            )  # fmt: skip

    def mend(self) -> None:
        _run("ip", "netns", "exec", self.name, "nft", "delete", "table", "inet", "cut")


@pytest.fixture(scope="module")
def nft() -> None:
    """The program, installed where it is missing and we may, as the lab does with its tools."""
    if shutil.which("nft") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (("update", "-q"), ("install", "-qy", "--no-install-recommends", "nftables")):
            subprocess.run(("apt-get", *words), capture_output=True, timeout=300, check=False)
    if shutil.which("nft") is None:
        pytest.skip("needs nft; as root: apt-get install nftables")


@pytest.fixture
def space(nft: None) -> Iterator[Space]:
    number = next(_numbers)
    tag = f"{os.getpid() % 1_000_000}{number}"
    name, link, net = f"gw{tag}", f"gw{tag}", f"10.94.{os.getpid() % 250}"
    try:
        _run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    try:
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "far", "netns", name)
        _run("ip", "address", "add", f"{net}.{4 * number + 1}/30", "dev", link)
        _run("ip", "link", "set", link, "up")
        _run("ip", "-n", name, "address", "add", f"{net}.{4 * number + 2}/30", "dev", "far")
        _run("ip", "-n", name, "link", "set", "far", "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        yield Space(name, f"{net}.{4 * number + 2}")
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)


@asynccontextmanager
async def far_gateway(space: Space, who: Identity, path: Path) -> AsyncIterator[Target]:
    """A gateway in there, with an engine at that path; as others see it."""
    address = f"{space.address}:{PORT}"
    routes = (Route("m", ModelState.READY, (Target(who.id, str(path), True, 64),)),)
    write_table(
        who.folder / "routes.json",
        RoutingTable(node=who.id, mesh=who.mesh, tls=str(who.tls), routes=routes),
    )
    process = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", space.name, sys.executable, "-m", "meshd.cli.main", "gateway",
        "--routes", str(who.folder / "routes.json"), "--listen", "127.0.0.1:9337",
        "--peers", address, cwd=REPOSITORY, stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Target(who.id, "", True, 64, address=address)
    finally:
        process.kill()
        await process.wait()


async def _until_up(near: Node, target: Target) -> None:
    async with caller(near.member) as http:

        async def up() -> bool:
            try:
                async with http.get(
                    f"https://{target.address}/mesh/health",
                    server_hostname=server_name(target.node, near.member.mesh),
                ) as answer:
                    return answer.status == 200
            except OSError:
                return False

        await until(up, 20, pause_s=0.05)


@pytest.mark.parametrize("hooks", [("input", "output"), ("input",), ("output",)])
async def test_a_cut_link_is_noticed_in_seconds_and_nobody_learns_of_it(
    tmp_path: Path, space: Space, hooks: tuple[str, ...]
) -> None:
    first, second, hang = tmp_path / "1.sock", tmp_path / "2.sock", False
    began = asyncio.Event()

    async def script(call: Call) -> None:
        if hang:
            began.set()
            await call.hung_up()
        else:
            await call.send(plain("200 OK", b'{"said":"far"}'))

    async with (
        engine(first, script),
        engine(second, answering("near")),
        far_gateway(space, member(tmp_path, "b"), first) as far,
        node(tmp_path, "a") as a,
        node(tmp_path, "c") as c,
    ):
        await _until_up(a, far)
        await c.tell(table([c.own(second)], [a, c]))
        peers = [Peer(far.node, far.address)]
        await a.tell(table([far, c.seen(busy=3)], [a, c], peers=peers))
        assert (await a.post({"model": "m"}))[1] == b'{"said":"far"}'
        hang = True
        waiting = [asyncio.create_task(a.post({"model": "m"})) for _ in range(3)]
        await asyncio.wait_for(began.wait(), 5)
        cut = time.monotonic()
        await asyncio.to_thread(space.drop, *hooks)
        fresh = await a.post({"model": "m"})
        answers = [fresh, *await asyncio.gather(*waiting)]
        took = time.monotonic() - cut
        assert {(status, body) for status, body, _ in answers} == {(200, b'{"said":"near"}')}
        assert took < 6, "a second for the connection, and some for a busy machine"
        print(f"cut {'+'.join(hooks)}: all answered elsewhere after {took:.2f} s")
        # From then on nobody waits for it, until it is there again.
        began_s = time.monotonic()
        assert (await a.post({"model": "m"}))[0] == 200
        assert time.monotonic() - began_s < 1
        hang = False
        await asyncio.to_thread(space.mend)

        async def back() -> bool:
            return await a.metric("meshd_gateway_suspect_targets") == 0

        await until(back, 15)
        assert (await a.post({"model": "m"}))[1] == b'{"said":"far"}'
