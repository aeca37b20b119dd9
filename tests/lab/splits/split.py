"""A split model over lab nodes: where it lies, its processes, what becomes of it after a blow."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab import cluster, inside, mesh
from tests.lab.cluster import Cluster
from tests.lab.inside import Answer
from tests.lab.node import LabError, Node, wait
from tests.lab.streams import text_of

MODEL = "tiny"
# Each slot's context takes 3 MiB beside the weights: with so many the model is too much for one
# node, and no two of the three are too small.
SLOTS = 16
LIMIT = "64MiB"
# From a blow to an answer: detection, a term that is arranged anew, and a load; all generous.
AGAIN_S = 60.0
LLAMA = f"mesh-llama@{MODEL}"
HOST_GUARD = f"mesh-guard@{MODEL}"


def texts(nodes: Cluster, *, split: str = "auto") -> dict[str, str]:
    """The configurations of all nodes. :param split: of the model."""
    entry = cluster.model(MODEL, slots=SLOTS, split=split)
    return nodes.alike(cluster.config(nodes.addresses[:2], models=entry, limit=LIMIT))


@dataclass(frozen=True, slots=True)
class Split:
    """One that answers.

    :ivar spare: the node that has nothing of it; clients are there.
    :ivar pids: of its four processes, each inside of its node: llama, host guard, member guard,
        rpc-server.
    """

    host: Node
    member: Node
    spare: Node
    instance: str
    pids: tuple[int, int, int, int]

    @property
    def rpc(self) -> str:
        return f"mesh-rpc@{self.instance}"

    @property
    def member_guard(self) -> str:
        return f"mesh-guard@{self.instance}"

    @property
    def units(self) -> tuple[tuple[Node, str], ...]:
        return (
            (self.host, LLAMA),
            (self.host, HOST_GUARD),
            (self.member, self.member_guard),
            (self.member, self.rpc),
        )

    @property
    def door_port(self) -> int:
        return argument(self.member, self.member_guard, "--listen")

    @property
    def rpc_port(self) -> int:
        return argument(self.member, self.rpc, "--port")


def argument(node: Node, unit: str, name: str) -> int:
    """The port in an argument of a unit's process."""
    raw = node.run(["cat", f"/proc/{node.main_pid(unit)}/cmdline"], check=True).stdout
    words = raw.split("\0")
    return int(words[words.index(name) + 1].rpartition(":")[2])


def status_of(node: Node) -> dict[str, Any]:
    return inside.control(node, "/v1/status") or {}


def model_of(node: Node) -> dict[str, Any]:
    found = (one for one in status_of(node).get("models", []) if one["name"] == MODEL)
    return next(found, {})


def hosts(nodes: Sequence[Node]) -> list[Node]:
    """Those that serve the model as a split, as they say themselves."""
    return [
        node
        for node in nodes
        if (one := model_of(node)).get("strategy") == "pipeline" and one.get("state") == "ready"
    ]


def find(nodes: Cluster, among: Sequence[Node] | None = None) -> Split | None:
    """The split, when it answers and each node of these says what is true."""
    alive = list(among or nodes.nodes)
    found = hosts(alive)
    if len(found) != 1:
        return None
    host = found[0]
    over = model_of(host)["over"]
    members = [node for node in alive if node.name in over]
    if len(over) != 1 or len(members) != 1:
        return None
    member = members[0]
    lends = status_of(member).get("lends", [])
    if [(one["host"], one["stage"]) for one in lends] != [(host.name, "ready")]:
        return None
    spare = next((node for node in alive if node not in (host, member)), host)
    instance = f"{MODEL}.{nodes.id(host)[:8]}"
    split = Split(host, member, spare, instance, (0, 0, 0, 0))
    pids = tuple(node.main_pid(unit) for node, unit in split.units)
    if not all(pids):
        return None
    return Split(host, member, spare, instance, (pids[0], pids[1], pids[2], pids[3]))


def wait_split(
    nodes: Cluster, among: Sequence[Node] | None = None, timeout_s: float = AGAIN_S
) -> Split:
    """Wait until there is one and it answers through its spare node."""
    try:
        split = wait(lambda: find(nodes, among), timeout_s, "a split", every_s=0.2)
        spare = split.spare
        answers = f"an answer through {spare.name}"
        wait(lambda: inside.chat(spare, MODEL, timeout_s=timeout_s).good, timeout_s, answers)
    except AssertionError as error:
        raise LabError(f"{error}\n{picture(nodes)}") from None
    return split


def picture(nodes: Cluster) -> str:
    lines = []
    for node in nodes.nodes:
        if node.alive():
            said = status_of(node)
            kept = {key: said.get(key) for key in ("sentence", "models", "lends", "units")}
            lines.append(f"{node.name}: {json.dumps(kept)}")
    return "\n".join(lines)


def put_right(nodes: Cluster, before: Split | None) -> Split:
    """Whatever the test before has done: all is well, and nobody remembers who failed.

    :param before: what there was before that test: if it is untouched, so is all else.
    """
    for node in nodes.nodes:
        if node.alive():
            node.systemctl("kill", "--signal=CONT", "mesh-rpc@*", "mesh-guard@*", check=False)
    nodes.put_right(texts(nodes), models=(MODEL,))
    now = find(nodes)
    if before is not None and now is not None and now.pids == before.pids:
        return now
    split = wait_split(nodes)
    # Only the host's brain keeps in mind who was to blame.
    split.host.systemctl("restart", "meshd", timeout_s=60)
    return wait_split(nodes)


def served_again(node: Node, blow_at: float) -> tuple[Answer, float]:
    """A request made now, whose client is patient; seconds from the blow to its answer."""
    answer = inside.chat(node, MODEL, timeout_s=AGAIN_S + 60)
    return answer, answer.ended_at - blow_at


def ended_well(answer: Answer, wanted: str) -> bool:
    """As the gateway promises of a stream whose engine died: it went on elsewhere and its text is
    what an unbroken one says, or it ends with an error that a client understands.
    """
    if answer.good:
        return text_of(answer) == wanted
    events = [line for line in answer.body.splitlines() if line.startswith("data: ")]
    return bool(events) and '"error"' in events[-1] and not answer.error


def refused_well(answer: Answer) -> bool:
    return answer.status == 503 and int(answer.head.get("Retry-After", 0)) > 0


def gone(node: Node, pid: int) -> bool:
    """Whether a process of a node is no more."""
    return node.run(["test", "-e", f"/proc/{pid}"]).returncode != 0


def kill(node: Node, pid: int, signal: str = "KILL") -> float:
    """When it was sent, by the monotonic clock."""
    node.run(["kill", f"-{signal}", str(pid)], check=True)
    return time.monotonic()


def plan_of(node: Node) -> str:
    return node.run(["meshd", "plan", "--explain"], timeout_s=30).stdout


def text_alone(node: Node, tokens: int, prompt: str) -> str:
    """What an engine that has the model to itself says, started for this on a node."""
    sock = "/run/alone.sock"
    node.run(
        [
            *("systemd-run", "--unit=alone", "--collect", "llama-server"),
            *("-m", "/usr/share/meshd/models/tiny.gguf", "--host", sock, "--fit", "off"),
            *("--ctx-size", "1024", "--parallel", "1", "--threads", "1", "--no-repack"),
        ],
        check=True,
    )
    try:
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }

        def ask() -> str:
            reply = node.http("/v1/chat/completions", body, url="http://alone", unix=sock)
            return mesh.parse_stream(reply.body).text if reply.status == 200 else ""

        return wait(ask, 30, "an engine of its own")
    finally:
        node.systemctl("stop", "alone")
