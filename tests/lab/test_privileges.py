"""Who may what: strangers see nothing, and a brain in enemy hands cannot make the hand its tool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import mesh
from tests.lab.conftest import tracked
from tests.lab.node import Node

DESIRED = "/run/mesh/desired.json"
RESULT = "/run/mesh-apply/result.json"
OWNED = "/run/owned"
MODEL = "/usr/share/meshd/models/tiny-draft.gguf"
PLANTED = "/var/lib/mesh/models"
SHARDS = "/var/lib/mesh/shards"
SERVER = "/usr/bin/llama-server"


# -- strangers on the node ------------------------------------------------------------------------


@pytest.mark.parametrize("socket", [mesh.CONTROL, "/run/mesh-engine/tiny/llama.sock"])
def test_a_stranger_cannot_talk_to_brain_or_engine(served: Node, socket: str) -> None:
    assert served.http("/health", url="http://x", unix=socket).status in (200, 404)
    refused = served.http("/health", url="http://x", unix=socket, user="nobody")
    assert refused.status == 0, refused


@pytest.mark.parametrize(
    "path", ["/var/lib/mesh", "/var/lib/mesh/generations", "/run/mesh-engine/tiny"]
)
def test_a_stranger_cannot_look_into_our_folders(served: Node, path: str) -> None:
    assert served.run(["ls", path]).returncode == 0
    assert served.run(["ls", path], user="nobody").returncode != 0


@pytest.mark.parametrize("path", [DESIRED, "/run/mesh/routes.json", RESULT, mesh.CONFIG])
def test_a_stranger_cannot_change_what_we_obey(served: Node, path: str) -> None:
    script = 'echo x >>"$1" || echo x >"$1.new" && mv -f "$1.new" "$1"'
    before = served.read(path)
    assert served.run(["sh", "-c", script, "sh", path], user="nobody").returncode != 0
    assert served.read(path) == before


def test_no_engine_can_be_reached_over_the_network(served: Node) -> None:
    listening = served.run(["ss", "-Hlntu"], check=True).stdout
    ports = {line.split()[4] for line in listening.splitlines()}
    assert ports == {"127.0.0.1:9337", "127.0.0.1:3131"}


def test_the_verbs_tell_a_stranger_why_not(served: Node) -> None:
    done = served.run(["meshd", "status"], user="nobody")
    assert done.returncode == 1
    assert "permission denied" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_each_engine_is_a_user_of_its_own_and_none_is_root(served: Node) -> None:
    users = {
        served.run(["ps", "-o", "uid=", "-p", str(pid)]).stdout.strip()
        for pid in mesh.engine_pids(served).values()
    }
    assert len(users) == len(mesh.MODELS)
    assert "0" not in users


# -- a hostile brain ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handed(lowerdir: str, scratch: Path) -> Iterator[Node]:
    """A node where the test plays the brain: as `_meshd`, which is all that a taken brain is."""
    with tracked("hand", lowerdir, scratch) as node:
        node.write(mesh.CONFIG, mesh.config())
        yield node


def engine(name: str, *more: str, **changes: Any) -> dict[str, Any]:
    """An engine that the hand would start, but for more arguments or other changes."""
    socket = f"/run/mesh-engine/{name}/llama.sock"
    good: dict[str, Any] = {
        "kind": "llama",
        "name": name,
        "model": name,
        "argv": [SERVER, "--model", MODEL, "--host", socket, "--ctx-size", "256", *more],
        "reads": [MODEL],
    }
    return good | changes


def serving(file: str, name: str) -> dict[str, Any]:
    socket = f"/run/mesh-engine/{name}/llama.sock"
    return engine(name, argv=[SERVER, "--model", file, "--host", socket], reads=[file])


def guard(name: str, *, argv: list[str] | None = None, **changes: str) -> dict[str, Any]:
    """A member's guard that the hand would start, but for other values of its flags."""
    flags = {
        "listen": "[::]:9340",
        "front": "127.0.0.1:9372",
        "admit": "a" * 16,
        "term": "3",
        "protocol": "8.0.0",
        "tls": "/run/mesh/tls",
        "status": f"/run/mesh-guard/{name}/guard.sock",
    } | changes
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    argv = argv or ["/usr/bin/meshd", "guard", name, "member", *words]
    return {"kind": "guard", "name": name, "model": name, "argv": argv, "reads": []}


def ask(node: Node, engines: list[dict[str, Any]], generation: int) -> dict[str, Any]:
    """Put a wish before the hand and let it work; returns its answer."""
    ask_in_text(node, json.dumps({"generation": generation, "engines": engines}))
    answer: dict[str, Any] = json.loads(node.read(RESULT))
    assert answer["generation"] == generation
    return answer


def ask_in_text(node: Node, text: str) -> str:
    node.run(["rm", "-rf", DESIRED])
    put = f"cat >{DESIRED}.new && mv {DESIRED}.new {DESIRED}"
    node.run(["sh", "-euc", put], stdin=text, user="_meshd", check=True)
    return work(node)


def work(node: Node) -> str:
    """Let the hand work; returns what it said."""
    node.systemctl("start", "mesh-apply.service", check=False)
    run = node.systemctl("show", "--value", "--property=InvocationID", "mesh-apply").stdout.strip()
    return node.journal(f"_SYSTEMD_INVOCATION_ID={run}")


def traces(node: Node) -> list[str]:
    """Units and drop-ins of engines, and the file that an injected command would make."""
    ours = ("mesh-llama@*", "mesh-rpc@*", "mesh-guard@*")
    units = node.systemctl("list-units", "--plain", "--no-legend", *ours)
    look = f"ls -d {OWNED} /run/systemd/system/mesh-* /etc/systemd/system/*evil* 2>/dev/null"
    files = node.run(["sh", "-c", look]).stdout
    return [line.split()[0] for line in (units.stdout + files).splitlines()]


# What a taken brain might want, and a word of the reason for which it is refused.
FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "a shell": (engine("e1", argv=["/bin/sh", "-c", f"touch {OWNED}"]), "/bin/sh"),
    "a shell in the engine's folder": (engine("e2", argv=["/usr/bin/sh"]), "/usr/bin/sh"),
    "a winding path": (engine("e3", argv=["/usr/bin/../bin/llama-server"]), "folder"),
    "a program of its own": (engine("e4", argv=[f"{PLANTED}/llama-server"]), "folder"),
    "a secret as a model": (serving("/etc/shadow", "e5"), "/etc/shadow"),
    "a secret behind a link": (serving(f"{PLANTED}/link.gguf", "e6"), "link.gguf"),
    "a secret behind a shard": (serving(f"{SHARDS}/link.gguf", "e25"), "link.gguf"),
    "a secret behind a folder of shards": (serving(f"{SHARDS}/etc/shadow", "e26"), "etc/shadow"),
    "a ranking for a shard": (serving("/var/lib/mesh/experts/x.gguf", "e27"), "experts/x.gguf"),
    "a secret beside a model": (engine("e7", reads=[MODEL, "/etc/shadow"]), "/etc/shadow"),
    "a folder for a model": (engine("e8", reads=[MODEL, "/root"]), "/root"),
    "a model that it does not declare": (engine("e9", reads=[]), "--model"),
    "a public address": (engine("e10", "--host", "0.0.0.0"), "--host"),
    "another engine's socket": (
        engine("e11", "--host", "/run/mesh-engine/honest/llama.sock"),
        "--host",
    ),
    "a file to write": (engine("e12", "--log-file", f"{PLANTED}/log"), "--log-file"),
    "a flag glued to its value": (engine("e13", f"--log-file={PLANTED}/log"), "--log-file"),
    "a library": (engine("e14", environment=[["LD_PRELOAD", f"{PLANTED}/evil.so"]]), "LD_PRELOAD"),
    "a folder of libraries": (
        engine("e15", environment=[["LD_LIBRARY_PATH", PLANTED]]),
        f"{PLANTED}' is not a folder of the engine",
    ),
    "a path as a name": (engine("../../../etc/systemd/system/evil"), "name"),
    "another unit's name": (engine("x.service ssh"), "name"),
    "a line break in the model": (
        engine("e16", model=f"evil\nExecStartPre=/bin/touch {OWNED}"),
        "control",
    ),
    "a line break in an argument": (
        engine("e17", "--alias", f"x\nExecStartPre=/bin/touch {OWNED}"),
        "control",
    ),
    "a limit that is none": (engine("e18", memory_max_bytes=-1), "memory"),
    "a door to another service": (guard("e20", front="127.0.0.1:22"), "--front"),
    "a door on another port": (guard("e21", listen="[::]:22"), "--listen"),
    "a door with the node's own key": (guard("e22", tls="/var/lib/mesh/identity"), "--tls"),
    "another verb of meshd's": (guard("e23", argv=["/usr/bin/meshd", "hand"]), "guard"),
    "tensors from elsewhere": (
        engine("e24", kind="rpc", environment=[["LLAMA_CACHE", "/etc"]]),
        "LLAMA_CACHE",
    ),
    "ten thousand arguments": (engine("e19", *["--metrics"] * 10_000), "too many"),
}


@pytest.fixture(scope="module")
def answer(handed: Node) -> dict[str, Any]:
    """The hand's answer to all of that at once, with one honest engine among it."""
    plant = "cd $1; ln -sf /etc/shadow link.gguf; cp /bin/sh llama-server; touch evil.so"
    handed.run(["sh", "-euc", plant, "sh", PLANTED], user="_meshd", check=True)
    plant = "ln -s /etc /etc/shadow $1; mv $1/shadow $1/link.gguf; cp /bin/true $2/x.gguf"
    others = [SHARDS, "/var/lib/mesh/experts"]
    handed.run(["sh", "-euc", plant, "sh", *others], user="_meshd", check=True)
    wishes = [wish for wish, _ in FORGED.values()]
    return ask(handed, [*wishes, engine("honest")], generation=1)


@pytest.mark.parametrize("what", FORGED)
def test_the_hand_refuses_a_hostile_brain(answer: dict[str, Any], what: str) -> None:
    wish, reason = FORGED[what]
    name = wish["name"]
    said = [line for line in answer["errors"] if name in line]
    assert any(reason in line for line in said), answer["errors"]
    assert not any(f"@{name}." in unit for unit in answer["started"])


def test_only_the_honest_engine_leaves_a_trace(handed: Node, answer: dict[str, Any]) -> None:
    assert answer["started"] == ["mesh-llama@honest.service"]
    assert traces(handed) == [
        "mesh-llama@honest.service",
        "/run/systemd/system/mesh-llama@honest.service.d",
    ]
    ask(handed, [], generation=2)
    assert traces(handed) == []


def test_the_language_of_units_is_only_text_in_an_argument(handed: Node) -> None:
    alias = f"%H ${{PATH}} $(touch {OWNED}) ; touch {OWNED} \\x0a 'x\" %%"
    ask(handed, [engine("odd", "--alias", alias)], generation=3)
    pid = handed.main_pid("mesh-llama@odd.service")
    if pid:  # granted: then it must be literal
        assert f"--alias\0{alias}\0" in handed.read(f"/proc/{pid}/cmdline")
    assert OWNED not in traces(handed)
    ask(handed, [], generation=4)
    assert traces(handed) == []


def test_an_rpc_server_is_for_this_machine_only(handed: Node) -> None:
    found = handed.run(["sh", "-c", "ls /usr/libexec/*/llama/bin/ggml-rpc-server"], check=True)
    program = found.stdout.strip()
    rpc = {"kind": "rpc", "name": "r1", "model": "", "reads": []}
    address = ["--host", "127.0.0.1", "--port", "9372"]
    public = ["--host", "0.0.0.0", "--port", "9373"]
    wishes = [
        {**rpc, "argv": [program, *address]},
        {**rpc, "name": "r2", "argv": [program, *public]},
        {**rpc, "name": "r3", "argv": [SERVER, *address]},
    ]
    said = ask(handed, wishes, generation=5)
    assert said["started"] == ["mesh-rpc@r1.service"]
    assert any("r2" in line and "--host" in line for line in said["errors"])
    assert any("r3" in line and "llama-server" in line for line in said["errors"])

    def listening() -> list[str]:
        sockets = handed.run(["ss", "-Hlnt"], check=True).stdout
        return [line.split()[3] for line in sockets.splitlines()]

    handed.wait(lambda: "127.0.0.1:9372" in listening(), 20, "rpc-server's port")
    assert listening() == ["127.0.0.1:9372"]
    assert int(handed.unit("mesh-rpc@r1.service")["NRestarts"]) == 0
    ask(handed, [], generation=6)
    assert traces(handed) == []


def test_an_engine_reads_the_brain_s_shards_and_writes_none(handed: Node) -> None:
    shard = f"{SHARDS}/0123.gguf"
    handed.run(["cp", MODEL, shard], user="_meshd", check=True)
    said = ask(handed, [serving(shard, "part")], generation=7)
    assert (said["started"], said["errors"]) == (["mesh-llama@part.service"], [])
    answers = [
        "curl",
        "-sf",
        "--unix-socket",
        "/run/mesh-engine/part/llama.sock",
        "http://x/health",
    ]
    handed.wait(lambda: handed.run(answers).returncode == 0, 60, "the shard to be served")
    pid = handed.main_pid("mesh-llama@part.service")
    inside = ["nsenter", "--mount", "--target", str(pid)]
    assert handed.run([*inside, "head", "-c", "4", shard], check=True).stdout == "GGUF"
    assert handed.run([*inside, "touch", shard]).returncode != 0
    assert handed.run([*inside, "touch", f"{SHARDS}/other.gguf"]).returncode != 0
    ask(handed, [], generation=8)
    assert traces(handed) == []


NO_WISHES = {
    "nothing": "",
    "half": "{",
    "null": "null",
    "a deep nest": "[" * 100_000,
    "no list": '{"generation": 1, "engines": 7}',
    "too much": "x" * 2**21,
    "an unknown kind": json.dumps({"generation": 1, "engines": [engine("k", kind="sshd")]}),
    "an unknown device": json.dumps({"generation": 1, "engines": [engine("g", gpu="/dev/vda")]}),
}


@pytest.mark.parametrize("what", NO_WISHES)
def test_the_hand_says_what_is_wrong_with_no_wish(handed: Node, what: str) -> None:
    said = ask_in_text(handed, NO_WISHES[what])
    assert f"meshd: {DESIRED}" in said
    assert "Traceback" not in said
    assert traces(handed) == []


@pytest.mark.parametrize("make", ["ln -s /etc/shadow", "mkfifo", "mkdir"])
def test_the_hand_follows_no_link_and_waits_for_no_pipe(handed: Node, make: str) -> None:
    handed.run(["rm", "-rf", DESIRED])
    handed.run([*make.split(), DESIRED], user="_meshd", check=True)
    said = work(handed)
    handed.run(["rm", "-rf", DESIRED])
    assert f"meshd: {DESIRED}" in said
    assert "Traceback" not in said
    assert "root:" not in said, "the content of the secret"
    assert traces(handed) == []


def test_the_hand_listens_to_nobody_but_the_brain(handed: Node) -> None:
    wish = json.dumps({"generation": 9, "engines": [engine("honest")]})
    handed.write(DESIRED, wish, owner="nobody")
    assert "user 65534" in work(handed)
    handed.write(DESIRED, wish, owner="_meshd", mode=0o666)
    assert f"meshd: {DESIRED}" in work(handed)
    assert traces(handed) == []
