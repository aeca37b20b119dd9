"""Start: from one YAML file to a chat answer, and what an administrator sees of it."""

from __future__ import annotations

import re

import pytest

from tests.lab import mesh
from tests.lab.node import Node

HARDENED = (
    "meshd.service",
    "mesh-gateway.service",
    "mesh-llama@tiny.service",
    "mesh-rpc@x.service",
    "mesh-guard@x.service",
    "mesh-apply.service",
)
MOST_EXPOSED = 2.0


def test_start_returns_when_it_is_ready(node: Node) -> None:
    node.write(mesh.CONFIG, mesh.config())
    node.systemctl("start", "meshd", timeout_s=60)
    # No waiting from here on: READY=1 promised all of this.
    unit = node.unit("meshd")
    assert unit["Type"] == "notify-reload"
    assert (unit["ActiveState"], unit["SubState"]) == ("active", "running")
    assert mesh.status(node)["models"], "the control socket does not answer"
    # systemd would have refused READY=1 without a SIGHUP handler; a reload at once must work too.
    node.systemctl("reload", "meshd")
    assert re.search(r"serving \d of 2 models", node.unit("meshd")["StatusText"])


def test_the_status_is_a_sentence_for_people(served: Node) -> None:
    sentence = served.unit("meshd")["StatusText"]
    assert sentence == "serving 2 of 2 models (tiny, small)"
    assert sentence in served.systemctl("status", "meshd").stdout
    shown = served.run(["meshd", "status"])
    assert shown.returncode == 0
    assert sentence in shown.stdout
    assert "127.0.0.1:9337" in shown.stdout


def test_a_chat_answer_streams_through_the_gateway(served: Node) -> None:
    reply = mesh.chat(served, stream=True, tokens=16)
    assert reply.status == 200, reply
    stream = mesh.parse_stream(reply.body)
    assert stream.done
    assert len(stream.chunks) >= 16, "one chunk a token"
    assert len({chunk["id"] for chunk in stream.chunks}) == 1
    assert stream.text


def test_a_chat_answer_comes_whole_too(served: Node) -> None:
    reply = mesh.chat(served, "small", tokens=4)
    assert reply.status == 200, reply
    answer = reply.json()
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_the_models_are_listed_and_unknown_ones_named(served: Node) -> None:
    listed = served.http("/v1/models").json()["data"]
    assert {one["id"] for one in listed} == {"tiny", "small"}
    reply = mesh.chat(served, "nobody-knows-it")
    assert reply.status == 404
    message = reply.json()["error"]["message"]
    assert "nobody-knows-it" in message
    assert "tiny" in message
    assert "small" in message


def test_systemctl_cat_shows_the_template_and_what_the_engine_runs(served: Node) -> None:
    text = served.systemctl("cat", "mesh-llama@tiny").stdout
    assert "/usr/lib/systemd/system/mesh-llama@.service" in text
    assert "/run/systemd/system/mesh-llama@tiny.service.d/50-meshd.conf" in text
    assert re.search(r"^ExecStart=:/usr/bin/llama-server[^#]*tiny\.gguf", text, re.MULTILINE)
    assert "meshd plan" in text, "the drop-in says where to change it"


def test_the_journal_can_be_asked_for_one_model(served: Node) -> None:
    tiny = served.journal("MESHD_MODEL=tiny", "_COMM=llama-server")
    assert "tiny.gguf" in tiny
    assert "tiny-draft.gguf" not in tiny
    assert "tiny-draft.gguf" in served.journal("MESHD_MODEL=small")


def test_systemctl_status_shows_each_engine_in_its_slice(served: Node) -> None:
    for model, unit in mesh.ENGINES.items():
        shown = served.systemctl("status", unit).stdout
        assert "active (running)" in shown
        assert f"model {model}" in shown
        assert "mesh-engine.slice" in shown
    assert served.active("mesh.target")


def test_the_console_answers_on_its_address(served: Node) -> None:
    assert served.http("/", url="http://127.0.0.1:3131").status == 200


def test_a_second_start_changes_nothing(served: Node) -> None:
    before = (served.main_pid("meshd"), mesh.engine_pids(served))
    served.systemctl("start", "mesh.target", "meshd")
    assert served.run(["meshd", "apply"]).returncode == 0
    assert served.run(["meshd", "plan"]).returncode == 0
    assert (served.main_pid("meshd"), mesh.engine_pids(served)) == before


@pytest.mark.parametrize("unit", HARDENED)
def test_hardening_is_gated(served: Node, unit: str) -> None:
    analysed = served.run(["systemd-analyze", "security", "--no-pager", unit], check=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", analysed)
    assert found, analysed
    assert float(found[1]) <= MOST_EXPOSED


def test_systemd_finds_nothing_wrong_with_our_units(served: Node) -> None:
    script = "systemd-analyze verify /usr/lib/systemd/system/mesh* mesh-llama@tiny.service"
    done = served.run(["sh", "-c", script])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
