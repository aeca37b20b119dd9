"""What may be lost: as the configuration bounds it, and as a request does."""

from __future__ import annotations

import json
import time

from tests.lab import inside
from tests.lab.cluster import Cluster
from tests.lab.experts.conftest import Measured
from tests.lab.experts.shards import (
    LOADED_S,
    MISSED,
    MODEL,
    UNIT,
    certificate,
    files,
    model_of,
    offered,
    own_shard,
    picture,
    reload,
    replicas,
    serves,
    wait_shards,
    worst,
)
from tests.lab.inside import Answer
from tests.lab.node import Node, wait


def ask(node: Node, quality: str) -> Answer:
    return inside.chat(node, MODEL, headers={"X-Mesh-Quality": quality})


def test_a_request_for_all_of_the_model_is_told_what_there_is(nodes: Cluster) -> None:
    for node in nodes.nodes:
        answer = ask(node, "exact")
        assert answer.status == 503
        assert int(answer.head["Retry-After"]) > 0
        error = json.loads(answer.body)["error"]
        assert error["code"] == "quality_unavailable"
        assert all(f"{one.name} has a shard; " in error["message"] for one in nodes.nodes)
        assert ask(node, "good").status == 400


def test_bounds_that_one_shard_keeps_lead_to_it(nodes: Cluster) -> None:
    ranked = sorted((worst(one, "kl"), name) for name, one in replicas(nodes.nodes[0]).items())
    (best, name), (second, _), *_ = ranked
    bound = (best + second) / 2
    assert best < bound < second
    for node in nodes.nodes:
        for _ in range(3):
            answer = ask(node, f"max_kl={bound!r}")
            assert answer.good, str(answer)
            assert answer.node == name
    refused = ask(nodes.nodes[0], f"max_kl={best / 2!r}")
    assert refused.status == 503
    assert f"at most {best / 2:g} may be" in refused.body


def test_with_exact_the_shards_go_and_are_back_at_once(nodes: Cluster, measured: Measured) -> None:
    kept = [files(node) for node in nodes.nodes]
    reload(nodes, "exact")

    def all_gone() -> bool:
        waits = [model_of(node).get("state") == "waiting" for node in nodes.nodes]
        return all(waits) and not any(replicas(node) for node in nodes.nodes)

    wait(all_gone, LOADED_S, "no shards")
    assert not any(node.active(UNIT) for node in nodes.nodes)
    assert [files(node) for node in nodes.nodes] == kept
    began_at = time.monotonic()
    reload(nodes)
    wait_shards(nodes)
    measured("from a reload to shards that were there", time.monotonic() - began_at)
    assert [files(node) for node in nodes.nodes] == kept


def test_a_shard_that_loses_too_much_says_by_how_much(nodes: Cluster) -> None:
    kept = [files(node) for node in nodes.nodes]
    found = {node.name: certificate(node) for node in nodes.nodes}
    reload(nodes, MISSED)

    def refused() -> bool:
        return all(own_shard(node).get("stage") == "refused" for node in nodes.nodes) and not any(
            serves(node) or node.active(UNIT) for node in nodes.nodes
        )

    wait(refused, LOADED_S, "shards that are refused")
    for node in nodes.nodes:
        one = found[node.name]["measured"][0]
        why = f"top-1 agreement on {one['domain']} is {int(one['top1'] * 1000) / 1000:.3f}, not"
        assert why in node.run(["meshd", "status"]).stdout
        assert why in node.run(["meshd", "doctor"], timeout_s=60).stdout
        assert why in node.run(["meshd", "plan", "--explain"], timeout_s=30).stdout
        wait(lambda: "top-1 agreement on" in offered(node).get("detail", ""), 20, "why not")  # noqa: B023
    answer = inside.chat(nodes.nodes[0], MODEL, headers={"X-Request-Timeout": "2"})
    assert answer.status == 503
    assert [files(node) for node in nodes.nodes] == kept


def test_an_exact_split_serves_where_shards_lose_too_much(
    nodes: Cluster, measured: Measured
) -> None:
    began_at = time.monotonic()
    reload(nodes, MISSED, split="auto")

    def hosts() -> list[Node]:
        found = [(node, model_of(node)) for node in nodes.nodes]
        return [
            node
            for node, one in found
            if (one.get("strategy"), one.get("state")) == ("pipeline", "ready")
        ]

    try:
        (host,) = wait(hosts, LOADED_S, "a split")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{picture(nodes)}") from None
    measured("from a reload to the exact split instead", time.monotonic() - began_at)
    for node in nodes.nodes:
        answer = ask(node, "exact")
        assert answer.good, str(answer)
        assert (answer.node, answer.head["X-Mesh-Quality"]) == (host.name, "exact")
    plan = host.run(["meshd", "plan", "--explain"], timeout_s=30).stdout
    rows = [line.split() for line in plan.splitlines()]
    assert any(row[:2] == [">", "pipeline"] for row in rows), plan
    here = [row for row in rows if row[:2] == ["expert-shard", host.name]]
    assert len(here) == 1, plan
    assert "below-the-quality-asked-for" in " ".join(here[0]), plan
