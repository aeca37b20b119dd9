"""The units of a split on a booted node: what they need is open to them, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from meshd.engine.build import Binary, EngineBuild
from meshd.mesh.record import Part
from meshd.models.gguf_facts import read_facts
from meshd.node.inventory import Cpu, Hardware, Ram
from meshd.paths import SYSTEM
from meshd.planner.lent import Lent
from meshd.planner.plan import Decision, DeviceUse, Link, Strategy
from meshd.units.guard import member_guard_spec
from meshd.units.llama import llama_spec
from meshd.units.rpc import rpc_spec
from meshd.units.spec import Desired, EngineSpec
from tests.lab import mesh
from tests.lab.conftest import tracked
from tests.lab.node import Node

GIB = 1 << 30
HOST, MEMBER = "a" * 16, "b" * 16
MODEL = "/usr/share/meshd/models/tiny.gguf"
LENT = Lent(f"tiny.{HOST[:8]}", "tiny", "f", HOST, 3, (Part(MEMBER, "ram", 4, GIB),), 2, 9340, 9372)
MACHINE = Hardware("box", Cpu("cpu", "x86_64", 1, 1), Ram(8 * GIB, 8 * GIB), ())
DESIRED, RESULT = "/run/mesh/desired.json", "/run/mesh-apply/result.json"
LLAMA, RPC = "mesh-llama@tiny.service", f"mesh-rpc@{LENT.name}.service"
GUARD = f"mesh-guard@{LENT.name}.service"
# What lies between the two on a real node, two guards, without what makes them guards.
RELAY = """
import asyncio
async def carry(source, sink):
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.close()
async def both(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", 9372)
    await asyncio.gather(carry(reader, back), carry(there, writer), return_exceptions=True)
async def main():
    await (await asyncio.start_server(both, "127.0.0.1", 9404)).serve_forever()
asyncio.run(main())
"""


def build(node: Node) -> EngineBuild:
    found = node.run(["sh", "-c", "ls /usr/libexec/*/llama/bin/ggml-rpc-server"], check=True)
    shown = node.run(["/usr/bin/llama-server", "--help"], check=True)
    return EngineBuild(
        origin="debian",
        root="/",
        build=None,
        version="",
        package="",
        ggml="",
        rpc_protocol=(8, 0, 0),
        binaries=(
            Binary("llama-server", "/usr/bin/llama-server", ""),
            Binary("ggml-rpc-server", found.stdout.strip(), ""),
        ),
        backends=("CPU", "RPC"),
        help_text=shown.stdout,
    )


def split(node: Node) -> EngineSpec:
    """The host's engine, whose one member is this same node."""
    shipped = Path(__file__).resolve().parents[2] / "share/models/tiny.gguf"
    decision = Decision(
        model="tiny",
        strategy=Strategy.PIPELINE,
        node=HOST,
        context=512,
        slots=1,
        memory=(DeviceUse("ram", GIB, 0, 0),),
        parts=(Part(HOST, "ram", 2, GIB), *LENT.parts),
        term=3,
        links=(Link(MEMBER, "127.0.0.1", 9404),),
    )
    facts = replace(read_facts(shipped), files=(MODEL,))
    return llama_spec(decision, facts, build(node), MACHINE, SYSTEM)


def ask(node: Node, generation: int, *specs: EngineSpec) -> dict[str, list[str]]:
    """Put a wish before the hand, as the brain does; returns what it answers."""
    wish = msgspec.json.encode(Desired(generation, specs)).decode()
    put = f"cat >{DESIRED}.new && mv {DESIRED}.new {DESIRED}"
    node.run(["sh", "-euc", put], stdin=wish, user="_meshd", check=True)
    node.systemctl("start", "mesh-apply.service")
    answer: dict[str, list[str]] = json.loads(node.read(RESULT))
    assert answer["errors"] == []
    return answer


@pytest.fixture(scope="module")
def running(lowerdir: str, scratch: Path) -> Iterator[Node]:
    """A node whose hand runs a split of which it is host and member."""
    with tracked("split", lowerdir, scratch) as node:
        node.write(mesh.CONFIG, mesh.config(models=("tiny",)))
        node.run(["systemd-run", "--unit=relay", "python3", "-c", RELAY], check=True)
        answer = ask(node, 1, split(node), rpc_spec(LENT, build(node), MACHINE, SYSTEM))
        assert set(answer["started"]) == {LLAMA, RPC}
        socket = str(SYSTEM.engine_socket("tiny"))
        node.wait(
            lambda: node.http("/health", url="http://x", unix=socket).status == 200,
            60,
            "the split to answer",
        )
        yield node


def seen(node: Node, unit: str, path: str) -> list[str]:
    """What a unit's process sees in a folder."""
    listed = node.run(["ls", "-A", f"/proc/{node.main_pid(unit)}/root{path}"])
    return listed.stdout.split()


def test_a_split_answers_from_both_its_halves(running: Node) -> None:
    body = {"prompt": "Once", "n_predict": 4, "temperature": 0, "ignore_eos": True}
    done = running.http(
        "/completion",
        url="http://x",
        unix=str(SYSTEM.engine_socket("tiny")),
        body=body,
    )
    assert done.status == 200, done
    assert done.json()["tokens_predicted"] == 4
    assert int(running.unit(RPC)["NRestarts"]) == 0


def test_an_rpc_server_reads_the_tensor_cache_and_nothing_else_of_ours(running: Node) -> None:
    assert set(seen(running, RPC, "/var/lib/mesh")) <= {"engine", "rpc-cache"}
    assert seen(running, RPC, "/var/lib/mesh/rpc-cache") == ["rpc"]
    assert seen(running, RPC, "/run/mesh-engine") == []
    inside = ["nsenter", "-t", str(running.main_pid(RPC)), "-m", "--"]
    wrote = running.run([*inside, "touch", "/var/lib/mesh/rpc-cache/rpc/x"])
    assert "Read-only file system" in wrote.stderr


def test_engines_have_the_loopback_device_and_no_capability(running: Node) -> None:
    for unit in (LLAMA, RPC):
        shown = running.unit(unit)
        assert shown["PrivateNetwork"] == "no"
        assert shown.get("CapabilityBoundingSet", "") == ""
        assert "AF_NETLINK" not in shown["RestrictAddressFamilies"]
    assert set(running.unit(LLAMA)["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET"}
    assert running.unit(LLAMA)["IPAddressAllow"]


def test_the_door_sees_the_nodes_certificate_and_not_its_key_or_secret(running: Node) -> None:
    running.run(["install", "-d", "-o", "_meshd", "-m", "0700", "/run/mesh/tls"], check=True)
    running.write("/etc/mesh/secret", "a secret")
    running.run(["touch", "/run/mesh/tls/cert.pem"], check=True)
    # Another program in its place looks around from within; the unit's confinement is as it is.
    look = (
        "ls -A /run/mesh /run/mesh/tls /run/mesh-guard; ls /etc/mesh; ls /var/lib/mesh;"
        "ls /run/mesh-engine; id -un; touch /run/mesh/tls/x;"
        f"touch /run/mesh-guard/{LENT.name}/guard.sock && echo may listen; sleep 1000"
    )
    asked = member_guard_spec(LENT, "[::]", build(running), SYSTEM)
    ask(running, 2, split(running), rpc_spec(LENT, build(running), MACHINE, SYSTEM), asked)
    # It says nothing to systemd, so that a start must not wait for it.
    override = f"/run/systemd/system/{GUARD}.d/90-test.conf"
    start = f'ExecStart=\nExecStart=/bin/sh -c "{look}"\n'
    running.write(override, f"[Service]\nType=exec\nWatchdogSec=0\n{start}")
    running.systemctl("daemon-reload")
    running.systemctl("restart", GUARD)
    running.wait(lambda: "may listen" in running.journal(f"_SYSTEMD_UNIT={GUARD}"), 20, "its look")
    run = running.unit(GUARD)["InvocationID"]
    said = running.journal(f"_SYSTEMD_INVOCATION_ID={run}")
    for there in ("tls\n", "cert.pem\n", f"{LENT.name}\n", "_meshd\n", "may listen\n"):
        assert there in said + "\n"
    for closed in ("/etc/mesh", "/var/lib/mesh", "/run/mesh-engine"):
        assert f"cannot open directory '{closed}'" in said
    assert "'/run/mesh/tls/x': Read-only file system" in said
    for hidden in ("desired.json", "routes.json", "secret", "tiny\n"):
        assert hidden not in said


def test_systemd_itself_stops_engines_before_their_guards(running: Node) -> None:
    before = running.unit("mesh-guard@tiny.service")["Before"].split()
    assert {LLAMA, "mesh-rpc@tiny.service", "mesh-gateway.service"} <= set(before)
    assert "mesh.target" in running.unit("mesh-guard@tiny.service")["PartOf"]


def test_a_split_stops_before_what_it_stands_on(running: Node) -> None:
    answer = ask(running, 3)
    assert set(answer["stopped"]) == {LLAMA, RPC, GUARD}
    journal = running.journal("_SYSTEMD_UNIT=init.scope", "+", "_PID=1")
    ends = [line for line in journal.splitlines() if "Stopped mesh-" in line]
    places = {unit: next(i for i, line in enumerate(ends) if unit in line) for unit in (LLAMA, RPC)}
    assert places[LLAMA] < places[RPC]
    assert int(running.unit(LLAMA)["NRestarts"]) == 0, "it lost its rpc-server first"
