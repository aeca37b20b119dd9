"""Who may ask from elsewhere: nobody without API keys, then their holders, within their limits.

ada serves; eve, on the same network, is none of its mesh and only asks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import inside, mesh
from tests.lab.cluster import Cluster
from tests.lab.conftest import tracked_cluster
from tests.lab.inside import Answer, Stream
from tests.lab.node import Node

PORT = 9337
MARKER = "xylophonequartz"
DEBUG = "[Service]\nEnvironment=MESHD_LOG=debug\n"


@pytest.fixture(scope="module")
def nodes(lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    with tracked_cluster(["ada", "eve"], lowerdir, scratch) as nodes:
        for unit in ("meshd", "mesh-gateway", "mesh-apply"):
            nodes["ada"].write(f"/etc/systemd/system/{unit}.service.d/debug.conf", DEBUG)
        nodes["ada"].systemctl("daemon-reload")
        mesh.start(nodes["ada"], text(nodes["ada"]))
        yield nodes


@pytest.fixture
def ada(nodes: Cluster) -> Iterator[Node]:
    """Serving, without any key before and after."""
    node = nodes["ada"]
    mesh.settled(node)
    yield node
    node.run(["sh", "-c", "rm -f /etc/mesh/keys.d/*.yaml /etc/credstore/mesh.keys*"], check=True)
    if "mesh.keys" in node.run(["ls", "/run/credentials/mesh-gateway.service"]).stdout:
        node.systemctl("restart", "meshd", "mesh-gateway", timeout_s=60)


@pytest.fixture
def eve(nodes: Cluster) -> Node:
    return nodes["eve"]


def text(node: Node) -> str:
    return (
        mesh.config(models=("tiny",))
        + f'gateway: {{listen: ["127.0.0.1:{PORT}", "{node.address}:{PORT}"]}}\n'
    )


def ask(asks: Node, of: Node, key: str = "", *, prompt: str = "Hello", tokens: int = 4) -> Answer:
    """From one node to the address of another."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return inside.chat(
        asks, "tiny", tokens=tokens, headers=headers, at=(of.address, PORT), prompt=prompt
    )


def add_key(node: Node, name: str, *options: str) -> str:
    return node.run(["meshd", "keys", "add", name, *options], check=True).stdout.strip()


def opened(eve: Node, ada: Node) -> None:
    """Wait until the door for others is open, which makes nobody restart anything."""
    ada.wait(lambda: ask(eve, ada).status == 401, 30, "the door to open")


def test_without_keys_no_other_machine_is_served_and_all_say_why(ada: Node, eve: Node) -> None:
    where = f"{ada.address}:{PORT}"
    refused = ask(eve, ada)
    assert refused.status == 0
    assert "refused" in refused.error
    assert inside.chat(ada, "tiny").good, "its own machine is"
    listening = ada.run(["ss", "-Hltn", f"sport = :{PORT}"], check=True).stdout
    assert ada.address not in listening
    checked = ada.run(["meshd", "check"])
    assert checked.returncode == 0, checked.stdout
    assert f"{where} stays closed to other machines until there is an API key" in (
        checked.stdout + checked.stderr
    )
    wanted = f"gateway.listen: {where} stays closed to other machines"
    status = mesh.status(ada)
    assert any(wanted in problem for problem in (*status["problems"], *status["degraded"])), status
    for said in (ada.journal("-u", "meshd"), ada.run(["meshd", "status"]).stdout):
        assert wanted in said
        assert "meshd keys add" in said


def test_a_key_opens_the_door_and_its_removal_closes_it(
    ada: Node, eve: Node, measured: Callable[..., None]
) -> None:
    engine = mesh.engine_pids(ada)["tiny"]
    began_at = time.monotonic()
    key = add_key(ada, "alice")
    opened(eve, ada)
    measured("meshd keys add to an open door", time.monotonic() - began_at)
    assert ask(eve, ada, key).good
    wrong = ask(eve, ada, key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert wrong.status == 401
    assert '"code":"invalid_api_key"' in wrong.body
    assert wrong.head["WWW-Authenticate"] == "Bearer"
    assert key not in ada.read("/etc/mesh/keys.d/alice.yaml"), "only its hash is kept"
    assert inside.chat(ada, "tiny").good, "its own machine needs none"
    ada.run(["meshd", "keys", "remove", "alice"], check=True)
    ada.wait(lambda: ask(eve, ada, key).status in (0, 401, 403), 30, "the key to count no more")
    ada.wait(lambda: ask(eve, ada).status == 0, 30, "the door to close")
    assert mesh.engine_pids(ada)["tiny"] == engine


def test_a_key_in_a_credential_counts(ada: Node, eve: Node) -> None:
    key = secrets.token_urlsafe(32)
    hashed = ada.run(["meshd", "keys", "hash"], stdin=f"{key}\n", check=True).stdout.strip()
    entry = f"keys:\n  - name: ci\n    hash: {hashed}\n"
    ada.write("/etc/credstore/mesh.keys.ci", entry, mode=0o600)
    ada.systemctl("restart", "meshd", "mesh-gateway", timeout_s=60)
    opened(eve, ada)
    assert ask(eve, ada, key).good


def test_limits_of_a_key_are_kept_and_say_when_to_come_back(ada: Node, eve: Node) -> None:
    often = add_key(ada, "often", "--rate", "2/min")
    much = add_key(ada, "much", "--tokens", "20/h")
    single = add_key(ada, "single", "--concurrency", "1")
    other = add_key(ada, "other", "--models", "qwen*")
    opened(eve, ada)
    ada.wait(lambda: ask(eve, ada, single).good, 10, "the keys to count")

    assert [ask(eve, ada, often).status for _ in range(3)] == [200, 200, 429]
    assert [ask(eve, ada, much, tokens=40).status for _ in range(2)] == [200, 429]
    for key, most_s in ((often, 60), (much, 3600)):
        refused = ask(eve, ada, key)
        assert refused.status == 429
        assert '"code":"rate_limit_exceeded"' in refused.body
        # A window is counted in parts, so that the last of them may be a little late.
        assert 1 <= int(refused.head["Retry-After"]) <= 1.1 * most_s

    running = Stream(
        eve,
        "tiny",
        900,
        headers={"Authorization": f"Bearer {single}"},
        at=(ada.address, PORT),
    )
    ada.wait(lambda: running.data_at, 30, "the first request to run", every_s=0.01)
    second = ask(eve, ada, single)
    assert not running.answer, "the first ended too soon to say anything"
    assert second.status == 429
    assert int(second.head["Retry-After"]) >= 1
    assert running.result().good
    assert ask(eve, ada, single).good

    assert ask(eve, ada, other).status in (403, 404)


def test_no_prompt_and_no_key_is_in_any_journal(ada: Node, eve: Node) -> None:
    key = add_key(ada, "holder", "--rate", "20/min")
    opened(eve, ada)
    prompt = f"{MARKER} what does ls do?"
    unknown_part = f'{{"role": "user", "content": [{{"type": "{MARKER}"}}]}}'
    for body in (
        f'{{"model": "tiny", "messages": "{MARKER}"}}',
        f'{{"model": "tiny", "messages": ["{MARKER}"',
        f'{{"model": "tiny", "prompt": "{MARKER}", "temperature": "{MARKER}"}}',
        f'{{"model": "tiny", "messages": [{unknown_part}]}}',
    ):
        assert 400 <= ada.http("/v1/chat/completions", body).status <= 501
    assert ask(eve, ada, prompt=prompt).status == 401
    assert ask(eve, ada, key, prompt=prompt).good
    assert ask(eve, ada, key, prompt=f"{MARKER} " * 2000).status == 400, "it is too long"
    assert inside.chat(ada, "no-such-model", prompt=prompt).status == 404
    assert inside.chat(ada, "tiny", prompt=prompt, stream=True, tokens=20).good
    stream = Stream(ada, "tiny", 900, prompt=prompt)
    ada.wait(lambda: stream.data_at, 30, "a stream to run", every_s=0.01)
    ada.run(["kill", "-9", str(ada.main_pid(mesh.ENGINES["tiny"]))], check=True)
    stream.result()
    ada.wait(lambda: mesh.served(ada), 60, "the engine to be back")
    while ask(eve, ada, key, prompt=prompt).status != 429:
        pass  # at most twenty

    ada.run(["journalctl", "--sync"], check=True)
    journal = ada.run(["journalctl", "--no-pager", "--all", "-o", "export"], check=True).stdout
    assert "MESHD_CODE=429" in journal, "what was said at debug level is in it"
    assert "MESHD_CODE=400" in journal
    assert MARKER not in journal
    assert key not in journal
