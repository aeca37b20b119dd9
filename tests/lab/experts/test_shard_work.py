"""Work on shards that is cut off, and files that are not what they were: nothing wrong is served,
nothing is lost, and nobody else notices.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.lab import cluster, inside
from tests.lab.cluster import Cluster
from tests.lab.experts.children import Children, brain_of, children
from tests.lab.experts.conftest import Measured
from tests.lab.experts.shards import (
    CERTIFICATES,
    MADE_S,
    MODEL,
    RANKINGS,
    SHARDS,
    STATE,
    UNIT,
    certificate,
    files,
    names,
    sha256,
    shard_path,
    wait_shards,
)
from tests.lab.node import Node, wait

NOTES = f"{STATE}/experts/shards"
START_S = 120.0


def outside(node: Node, path: str) -> Path:
    """A path of a node's, without a process in it for each look."""
    return Path(f"/proc/{node.pid}/root{path}")


def without_mesh(nodes: list[Node], work: Callable[[Node], None]) -> None:
    """Do this while nothing of meshd's runs on these nodes; then start all again."""

    def one(node: Node) -> None:
        node.systemctl("stop", "mesh.target", timeout_s=60)
        work(node)

    cluster.at_once(one, nodes)
    cluster.at_once(lambda node: node.systemctl("start", "mesh.target", timeout_s=START_S), nodes)


def measuring(watched: Children, node: Node) -> int:
    """How many measurements of its shards have begun on a node; logits of others are tried, too."""
    return sum(
        "--kl-divergence" in one.words and any(word.startswith(SHARDS) for word in one.words)
        for one in watched.of(node, "llama-perplexity")
    )


def test_meshd_that_is_killed_while_it_writes_and_measures_goes_on(
    nodes: Cluster, measured: Measured
) -> None:
    victim, asked = nodes.nodes[1], nodes.nodes[0]
    path, before = shard_path(victim), certificate(victim)
    key = before["key"]
    partial_file = outside(victim, f"{SHARDS}/.{key}.gguf.part")
    note = outside(victim, f"{NOTES}/{key}.json")

    def forget(node: Node) -> None:
        node.run(["rm", path, f"{CERTIFICATES}/{key}.json", f"{NOTES}/{key}.json"], check=True)

    with inside.load(asked, MODEL) as (load,), children([victim]) as watched:
        began_at = time.monotonic()
        without_mesh([victim], forget)
        brain = brain_of(victim)
        wait(partial_file.exists, MADE_S, "a shard that is written", every_s=0.001)
        os.kill(brain, signal.SIGKILL)
        noted = note.exists()
        assert not noted, "it was written before it could be killed"
        assert not victim.active(UNIT)
        wait(lambda: measuring(watched, victim), MADE_S, "a shard that is measured", every_s=0.02)
        child = watched.of(victim, "llama-perplexity")[-1]
        assert not outside(victim, f"{CERTIFICATES}/{key}.json").exists()
        os.kill(brain_of(victim), signal.SIGKILL)
        wait(lambda: child.gone, 10, "the end of meshd's child", every_s=0.02)
        assert not victim.active(UNIT)
        wait_shards(nodes, timeout_s=MADE_S)
        measured("from a lost shard to another, over two kills", time.monotonic() - began_at)
    assert load.failed == [], "who is asked elsewhere notices"
    assert names(victim, SHARDS) == [f"{key}.gguf"]
    assert names(victim, NOTES) == names(victim, CERTIFICATES) == [f"{key}.json"]
    assert certificate(victim) == before
    assert sha256(victim, path) == before["shard_sha256"]


def test_files_that_are_not_what_they_were_are_refused_and_made_again(
    nodes: Cluster, measured: Measured
) -> None:
    flipped, cut, mixed_up = nodes.nodes
    before = {node.name: certificate(node) for node in nodes.nodes}
    paths = {node.name: shard_path(node) for node in nodes.nodes}
    lay = {node.name: files(node) for node in nodes.nodes}
    (ranking,) = names(mixed_up, RANKINGS)
    others = flipped.read(f"{CERTIFICATES}/{before[flipped.name]['key']}.json")

    def damage(node: Node) -> None:
        path = paths[node.name]
        if node is flipped:
            script = 'printf XXXXXXXX | dd of="$1" bs=1 seek=8000000 conv=notrunc'
            node.run(["sh", "-euc", script, "sh", path], check=True)
        elif node is cut:
            os.truncate(outside(node, path), before[node.name]["size_bytes"] - 4096)
        else:
            # Of another model, and of another shard.
            file = f"{RANKINGS}/{ranking}"
            text = node.read(file).replace(before[node.name]["fingerprint"], "0" * 16)
            node.write(file, text, owner="_meshd:_meshd")
            own = f"{CERTIFICATES}/{before[node.name]['key']}.json"
            node.write(own, others, owner="_meshd:_meshd")

    began_at = time.monotonic()
    without_mesh(nodes.nodes, damage)
    starts = {}
    for node in nodes.nodes:
        wait(partial(node.active, UNIT), MADE_S, f"an engine of {node.name}", every_s=0.05)
        starts[node.name] = sha256(node, paths[node.name])
    wait_shards(nodes, timeout_s=MADE_S)
    measured("from damaged files to all as it was", time.monotonic() - began_at)
    for node in nodes.nodes:
        assert starts[node.name] == before[node.name]["shard_sha256"]
        assert certificate(node) == before[node.name]
        assert names(node, SHARDS) == [paths[node.name].rpartition("/")[2]]
    for node in (flipped, cut):
        said = node.journal("-u", "meshd")
        assert "a shard is of no use" in said
        assert files(node)[paths[node.name]] != lay[node.name][paths[node.name]]
    # Only what was wrong was made again.
    kept = paths[mixed_up.name]
    assert files(mixed_up)[kept] == lay[mixed_up.name][kept]
    assert names(mixed_up, RANKINGS) == [ranking]
    assert "a certificate is of no use" in mixed_up.journal("-u", "meshd")


def test_a_mesh_that_is_switched_off_and_on_makes_nothing_anew(
    nodes: Cluster, measured: Measured
) -> None:
    kept = [files(node) for node in nodes.nodes]
    with children(nodes.nodes) as watched:
        began_at = time.monotonic()
        without_mesh(nodes.nodes, lambda _: None)
        wait_shards(nodes)
        measured("from the end of all nodes to shards that were there", time.monotonic() - began_at)
        ran = [one for node in nodes.nodes for one in watched.seen[node.name]]
    assert [one for one in ran if "--help" not in one.words] == []
    assert [files(node) for node in nodes.nodes] == kept
