"""Stop: nothing of ours is left, and nothing of anybody else's is touched."""

from __future__ import annotations

from tests.lab import inside, mesh
from tests.lab.node import Node

STRANGER = "somebody-elses.service"
STRANGER_COMMAND = (
    "/usr/bin/llama-server --model /usr/share/meshd/models/tiny-draft.gguf"
    " --host 127.0.0.1 --port 8088 --ctx-size 256 --parallel 1"
)


def processes_of_ours(node: Node) -> str:
    """Every process in our slices or of our users; empty when there is none."""
    listed = node.run(["ps", "-eo", "pid,user:32,cgroup:120,args"], check=True).stdout
    marks = ("mesh.slice", " _mesh")
    return "\n".join(line for line in listed.splitlines() if any(mark in line for mark in marks))


def stop(node: Node) -> None:
    """Without waiting for anything more: when systemctl returns, all is gone."""
    node.systemctl("stop", "mesh.target", timeout_s=60)
    assert processes_of_ours(node) == ""


def start_stranger(node: Node) -> int:
    node.run(
        ["systemd-run", f"--unit={STRANGER}", *STRANGER_COMMAND.split()],
        check=True,
    )
    health = "http://127.0.0.1:8088"
    node.wait(lambda: node.http("/health", url=health).status == 200, 60, "the stranger")
    return node.main_pid(STRANGER)


def test_stop_leaves_nothing_of_ours_and_all_of_the_others(node: Node) -> None:
    stranger = start_stranger(node)
    mesh.start(node)
    assert "llama-server" in processes_of_ours(node)
    stop(node)
    left = node.systemctl("list-units", "--plain", "--no-legend", "--state=active", "mesh*").stdout
    assert [line for line in left.splitlines() if ".slice" not in line] == []
    assert node.http("/v1/models").status == 0, "somebody still listens on 9337"
    assert node.main_pid(STRANGER) == stranger
    assert node.http("/health", url="http://127.0.0.1:8088").status == 200


def test_stop_wins_over_a_restart_that_is_due(node: Node) -> None:
    mesh.start(node)
    pid = node.main_pid(mesh.ENGINES["tiny"])
    node.run(["kill", "-9", str(pid)], check=True)
    stop(node)


def test_after_a_stop_it_starts_again(node: Node) -> None:
    mesh.start(node)
    node.systemctl("stop", "mesh.target")
    node.systemctl("start", "mesh.target", timeout_s=60)
    mesh.settled(node)
    assert mesh.served(node)


def test_an_engine_stopped_by_hand_is_wanted_and_returns(node: Node) -> None:
    mesh.start(node)
    node.systemctl("stop", mesh.ENGINES["small"])
    node.wait(lambda: node.active(mesh.ENGINES["small"]), 30, "small to be started again")
    mesh.settled(node)


def test_a_stop_lets_running_answers_end(node: Node) -> None:
    """The gateway goes first, and its engines only when it has nothing left to do."""
    mesh.start(node)
    stream = inside.Stream(node, "tiny", 700)
    node.wait(lambda: stream.pieces > 3, 30, "the answer to begin")
    stop(node)
    answer = stream.result(30)
    assert answer.error == ""
    assert answer.whole
