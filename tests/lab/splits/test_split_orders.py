"""What people ask of a node that takes part in a split: never to split, to be drained."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.lab import inside
from tests.lab.cluster import Cluster, at_once
from tests.lab.node import wait
from tests.lab.splits.split import (
    MODEL,
    Split,
    hosts,
    model_of,
    plan_of,
    texts,
    wait_split,
)

Measured = Callable[..., None]


def test_a_reload_that_forbids_splits_ends_it_and_the_plan_says_why(
    nodes: Cluster, split: Split, measured: Measured
) -> None:
    never = texts(nodes, split="never")
    began_at = time.monotonic()
    at_once(lambda node: nodes.reconfigure(node, never[node.name]), nodes.nodes)

    def ended() -> bool:
        return not hosts(nodes.nodes) and all(not node.main_pid(unit) for node, unit in split.units)

    wait(ended, 60, "the end of the split")
    measured("from the reload to the end of the split's processes", time.monotonic() - began_at)
    plan = plan_of(split.host)
    assert "models[].split is never" in plan, plan
    assert model_of(split.host)["state"] == "waiting"
    began_at = time.monotonic()
    auto = texts(nodes)
    at_once(lambda node: nodes.reconfigure(node, auto[node.name]), nodes.nodes)
    wait_split(nodes)
    measured("from the reload that allows it to an answer", time.monotonic() - began_at)


def test_a_drain_of_a_member_moves_the_split_away(
    nodes: Cluster, split: Split, measured: Measured
) -> None:
    began_at = time.monotonic()
    with inside.load(split.spare, MODEL, stream=True, tokens=64) as (load,):
        done = split.member.run(["meshd", "drain", "--wait", "--deadline", "30s"], timeout_s=90)
        measured("meshd drain of a member", time.monotonic() - began_at)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        left = [node for node in nodes.nodes if node is not split.member]
        after = wait_split(nodes, left)
        there_at = time.monotonic()
        wait(lambda: load.last_began_at > there_at, 60, "an answer afterwards")
    measured("from the drain to the split elsewhere", there_at - began_at)
    try:
        assert {after.host, after.member} == set(left)
        assert not split.member.main_pid(split.rpc)
        bad = [str(one) for one in load.failed if one.status != 503]
        assert bad == []
    finally:
        split.member.run(["meshd", "drain", "--undo"], check=True)
