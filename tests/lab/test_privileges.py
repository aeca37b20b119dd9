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
SOCKET = "/run/mesh-engine/evil/llama.sock"
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


def engine(**changes: Any) -> dict[str, Any]:
    """An engine that the hand would start, but for the changes."""
    good: dict[str, Any] = {
        "kind": "llama",
        "name": "evil",
        "model": "evil",
        "argv": [SERVER, "--model", MODEL, "--host", SOCKET, "--ctx-size", "256"],
        "reads": [MODEL],
    }
    return good | changes


def ask(node: Node, wanted: object, generation: int = 1) -> str:
    """Put a wish before the hand and let it work; returns all that it said."""
    text = wanted if isinstance(wanted, str) else None
    if text is None:
        text = json.dumps({"generation": generation, "engines": [wanted]})
    node.run(["rm", "-rf", DESIRED, RESULT])
    put = f"cat >{DESIRED}.new && mv {DESIRED}.new {DESIRED}"
    node.run(["sh", "-euc", put], stdin=text, user="_meshd", check=True)
    return work(node)


def work(node: Node) -> str:
    node.systemctl("start", "mesh-apply.service", check=False)
    said = node.journal("-u", "mesh-apply", "--boot", lines=20)
    return said + node.run(["cat", RESULT]).stdout


def harmless(node: Node) -> bool:
    """Nothing was started, nothing was written where systemd looks, nothing was run."""
    units = node.systemctl("list-units", "--plain", "--no-legend", "mesh-llama@*").stdout
    dropins = node.run(["sh", "-c", "ls -d /run/systemd/system/*mesh* /etc/systemd/system/*evil*"])
    owned = node.run(["ls", OWNED]).returncode == 0
    return not (units.strip() or dropins.stdout.strip() or owned)


FORGED = {
    "a shell": engine(argv=["/bin/sh", "-c", f"touch {OWNED}"]),
    "a shell by another name": engine(argv=[f"{SERVER}/../sh", "-c", f"touch {OWNED}"]),
    "a program of its own": engine(
        argv=["/var/lib/mesh/models/llama-server", *engine()["argv"][1:]]
    ),
    "a secret as a model": engine(
        argv=[SERVER, "--model", "/etc/shadow", "--host", SOCKET], reads=["/etc/shadow"]
    ),
    "a secret behind a link": engine(
        argv=[SERVER, "--model", "/var/lib/mesh/models/link.gguf", "--host", SOCKET],
        reads=["/var/lib/mesh/models/link.gguf"],
    ),
    "a secret beside a model": engine(reads=[MODEL, "/etc/shadow"]),
    "a folder for a model": engine(reads=[MODEL, "/root"]),
    "a public address": engine(
        argv=[SERVER, "--model", MODEL, "--host", "0.0.0.0", "--port", "9000"]
    ),
    "another engine's socket": engine(
        argv=[SERVER, "--model", MODEL, "--host", "/run/mesh-engine/tiny/llama.sock"]
    ),
    "a file to write": engine(argv=[*engine()["argv"], "--log-file", "/var/lib/mesh/log"]),
    "a library": engine(environment=[["LD_PRELOAD", "/var/lib/mesh/models/evil.so"]]),
    "a path as a name": engine(name="../../../etc/systemd/system/evil"),
    "another unit's name": engine(name="x.service sshd"),
    "a line break in the model": engine(model=f"evil\nExecStartPre=/bin/touch {OWNED}"),
    "a line break in an argument": engine(
        argv=[*engine()["argv"], "--alias", f"x\nExecStartPre=/bin/touch {OWNED}"]
    ),
    "a specifier": engine(argv=[*engine()["argv"], "--alias", "%H$(touch /run/owned)${PATH}\\x0a"]),
    "another kind": engine(kind="sshd"),
    "a foreign device": engine(gpu="/dev/vda"),
}


@pytest.mark.parametrize("what", FORGED)
def test_the_hand_refuses_a_hostile_brain(handed: Node, what: str) -> None:
    plant = (
        "cd /var/lib/mesh/models; ln -sf /etc/shadow link.gguf; cp /bin/sh llama-server;"
        " touch evil.so"
    )
    handed.run(["sh", "-c", plant], user="_meshd", check=True)
    said = ask(handed, FORGED[what])
    assert harmless(handed), said
    assert said
    assert "Traceback" not in said


def test_the_hand_refuses_what_is_no_wish(handed: Node) -> None:
    for text in ("", "{", "null", "[" * 100_000, '{"generation": 1, "engines": 7}', "x" * 2**21):
        said = ask(handed, text)
        assert harmless(handed)
        assert "Traceback" not in said


def test_the_hand_follows_no_link_and_waits_for_no_pipe(handed: Node) -> None:
    for make in (f"ln -s /etc/shadow {DESIRED}", f"mkfifo {DESIRED}", f"mkdir {DESIRED}"):
        handed.run(["rm", "-rf", DESIRED])
        handed.run(["sh", "-c", make], user="_meshd", check=True)
        said = work(handed)
        assert harmless(handed)
        assert "Traceback" not in said
        assert "root:" not in said
    handed.run(["rm", "-rf", DESIRED])


def test_the_same_wish_without_the_malice_is_granted(handed: Node) -> None:
    said = ask(handed, engine(), generation=7)
    assert handed.active("mesh-llama@evil.service"), said
    assert json.loads(handed.read(RESULT))["generation"] == 7
    ask(handed, json.dumps({"generation": 8, "engines": []}))
    handed.wait(lambda: harmless(handed), 20, "the engine's end")
