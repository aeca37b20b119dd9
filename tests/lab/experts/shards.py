"""A mixture of experts over lab nodes: who serves it from which shard, and what lies on disks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab import cluster, inside
from tests.lab.cluster import Cluster
from tests.lab.inside import Answer
from tests.lab.node import LabError, Node, wait

MODEL = "moe"
UNIT = f"mesh-llama@{MODEL}"
EXPERTS, LAYERS = 16, 6
# Each slot's context takes 3 MiB beside the weights: so many, and a few of the experts are too much
# for a node.
SLOTS = 13
LIMIT = "64MiB"
# What a toy loses without some of its experts is more than a large model does.
KEPT = "{min_top1: 0.6}"
MISSED = "{min_top1: 0.999}"
STATE = "/var/lib/mesh"
SHARDS = f"{STATE}/shards"
CERTIFICATES = f"{STATE}/experts/certificates"
RANKINGS = f"{STATE}/experts/rankings"
# Of the shipped texts so much: all of them would take a busy machine minutes to count.
TEXT_CHARACTERS = 67_000
DOMAINS = ("code", "prose")
_TEXTS = Path(__file__).resolve().parents[3] / "share/calibration"
# Loading alone, all of it being there. Measured: 6 s.
LOADED_S = 60.0
# A shard is written and measured. Measured: 25 s.
MADE_S = 150.0


def entry(quality: str = KEPT, split: str = "never") -> str:
    own = ", ".join(f"{domain}: {_text_of(domain)}" for domain in DOMAINS)
    return (
        f"  - {{name: {MODEL}, source: tiny-moe.gguf, context: 1024, slots: {SLOTS}, "
        f"split: {split}, quality: {quality}, calibration: {{{own}}}}}\n"
    )


def texts(nodes: Cluster, quality: str = KEPT, split: str = "never") -> dict[str, str]:
    """The configurations of all nodes."""
    models = entry(quality, split)
    return nodes.alike(cluster.config(nodes.addresses[:2], models=models, limit=LIMIT))


def lay_down_texts(nodes: Cluster) -> None:
    for domain in DOMAINS:
        text = (_TEXTS / f"{domain}.ranks.txt").read_text()[:TEXT_CHARACTERS]
        for node in nodes.nodes:
            node.write(_text_of(domain), text)


def _text_of(domain: str) -> str:
    return f"/srv/texts/{domain}.txt"


def reload(nodes: Cluster, quality: str = KEPT, split: str = "never") -> None:
    wanted = texts(nodes, quality, split)
    cluster.at_once(lambda node: nodes.reconfigure(node, wanted[node.name]), nodes.nodes)


# -- what nodes say --------------------------------------------------------------------------------


def model_of(node: Node) -> dict[str, Any]:
    """The model in a node's own status; empty while there is none."""
    status = inside.control(node, "/v1/status") or {}
    found = (one for one in status.get("models", []) if one["name"] == MODEL)
    return next(found, {})


def own_shard(node: Node) -> dict[str, Any]:
    """What a node says of its own shard; empty while that is nothing."""
    return next((one for one in model_of(node).get("shards", ()) if one["me"]), {})


def serves(node: Node) -> bool:
    one = model_of(node)
    return (one.get("state"), one.get("strategy")) == ("ready", "expert-shard")


def offered(node: Node) -> dict[str, Any]:
    """The model in `/v1/models` of a node's gateway; empty while it is not there."""
    reply = node.http("/v1/models", timeout_s=10)
    listed = reply.json()["data"] if reply.status == 200 else []
    return next((one["mesh"] for one in listed if one["id"] == MODEL), {})


def replicas(node: Node) -> dict[str, dict[str, Any]]:
    """Those that a gateway knows, by the name of their node."""
    return {one["node"]: one for one in offered(node).get("replicas", ())}


def worst(replica: dict[str, Any], figure: str) -> float:
    """Over all kinds of text. :param figure: of those that are the larger the worse."""
    return max(float(one[figure]) for one in replica["measured"])


def wait_shards(
    nodes: Cluster, among: Sequence[Node] | None = None, timeout_s: float = LOADED_S
) -> None:
    """Wait until each of these serves from a shard, and each one's gateway knows all of them."""
    alive = list(among or nodes.nodes)
    names = {node.name for node in alive}

    def all_well() -> bool:
        if not all(serves(node) for node in alive):
            return False
        known = [replicas(node) for node in alive]
        return all(
            one.keys() == names and all(it["quality"] == "shard" for it in one.values())
            for one in known
        )

    try:
        wait(all_well, timeout_s, "shards on all nodes")
    except AssertionError as error:
        raise LabError(f"{error}\n{picture(nodes)}") from None


def picture(nodes: Cluster) -> str:
    alive = [node for node in nodes.nodes if node.alive()]
    return "\n".join(f"{node.name}: {json.dumps(model_of(node))}" for node in alive)


def put_right(nodes: Cluster) -> None:
    """Whatever the test before has done: all nodes serve from shards, and know each other."""
    nodes.put_right(texts(nodes), models=(MODEL,))
    wait_shards(nodes, timeout_s=MADE_S)


def session(node: Node, name: str, **options: Any) -> Answer:
    """One turn of a conversation."""
    return inside.chat(node, MODEL, headers={"X-Session-Id": name}, **options)


def homes(node: Node, count: int = 16) -> dict[str, str]:
    """Conversations, and the name of the node that answers each."""
    found = {}
    for number in range(count):
        answer = session(node, f"conversation {number}")
        assert answer.good, str(answer)
        found[f"conversation {number}"] = answer.node
    return found


# -- what lies on disks ----------------------------------------------------------------------------


def files(node: Node) -> dict[str, str]:
    """What was made on a node and stays, with its inode, size and time of change, by its path."""
    listed = node.run(
        [
            *("find", SHARDS, RANKINGS, CERTIFICATES, f"{STATE}/experts/logits"),
            *("-type", "f", "-printf", r"%p\t%i %s %T@\n"),
        ],
        check=True,
    ).stdout
    return dict(line.split("\t") for line in listed.splitlines())


def names(node: Node, folder: str) -> list[str]:
    return sorted(node.run(["ls", "-A", folder], check=True).stdout.split())


def certificate(node: Node) -> dict[str, Any]:
    """The one on a node's disk of the shard that it serves from."""
    key = replicas(node)[node.name]["shard"]
    found: dict[str, Any] = json.loads(node.read(f"{CERTIFICATES}/{key}.json"))
    return found


def shard_path(node: Node) -> str:
    return f"{SHARDS}/{replicas(node)[node.name]['shard']}.gguf"


def sha256(node: Node, path: str) -> str:
    return node.run(["sha256sum", path], check=True).stdout.split()[0]
