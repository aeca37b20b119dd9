"""From nothing to a mixture of experts that every node serves from a shard of its own."""

from __future__ import annotations

import pytest

from tests.lab import inside
from tests.lab.cluster import Cluster
from tests.lab.experts.children import TOOLS, Child
from tests.lab.experts.conftest import Birth, Measured
from tests.lab.experts.shards import (
    CERTIFICATES,
    DOMAINS,
    EXPERTS,
    LAYERS,
    MODEL,
    RANKINGS,
    SHARDS,
    STATE,
    UNIT,
    certificate,
    names,
    replicas,
    sha256,
    shard_path,
    worst,
)


def test_all_serve_from_shards_that_have_every_expert_together(
    birth: Birth, nodes: Cluster, measured: Measured
) -> None:
    measured("from the start of all nodes to shards on each", birth.took_s)
    found = [certificate(node) for node in nodes.nodes]
    assert len({one["key"] for one in found}) == 3, "each has other experts"
    for layer in range(LAYERS):
        held = [set(one["selection"][layer]) for one in found]
        assert set().union(*held) == set(range(EXPERTS))
        assert {len(one) for one in held} == {found[0]["experts"]} != {EXPERTS}
    assert len({one["ranking"] for one in found}) == 1


def test_counting_goes_on_where_it_was_when_meshd_was_killed(birth: Birth, nodes: Cluster) -> None:
    def spans(runs: tuple[Child, ...]) -> list[tuple[str, str]]:
        return [(one.after("--file"), one.after("--chunk")) for one in runs]

    before, after = spans(birth.counted), spans(birth.again)
    done = before[:-1]
    assert done, "it was killed before anything was counted"
    assert after, "there was nothing left to count"
    assert not set(done) & set(after), "counted twice"
    ranked = {tuple(names(node, RANKINGS)) for node in nodes.nodes}
    assert len(ranked) == 1
    (file,) = ranked.pop()
    assert len({sha256(node, f"{RANKINGS}/{file}") for node in nodes.nodes}) == 1
    for node in nodes.nodes:
        assert names(node, f"{STATE}/experts/counting") == []


@pytest.mark.parametrize("tool", TOOLS)
def test_its_tools_run_in_the_sandbox_of_meshd_and_give_way(birth: Birth, tool: str) -> None:
    """They are listed by the cgroup of its unit."""
    ran = [one for node in birth.nodes.nodes for one in birth.watched.of(node, tool)]
    # What is seen in its first moment is still nice(1), or not even that.
    settled = [one for one in ran if one.nice]
    assert settled, ran
    for one in settled:
        assert one.nice == 19
        assert one.status["Seccomp"] == "2"
        assert one.status["NoNewPrivs"] == "1"
        assert int(one.status["CapEff"], 16) == int(one.status["CapBnd"], 16) == 0
        assert one.status["Uid"].split()[0] != "0"


def test_only_one_node_computes_the_whole_models_logits(birth: Birth) -> None:
    runs = {
        node.name: [
            one
            for one in birth.watched.of(node, "llama-perplexity")
            if one.after("--kl-divergence-base").startswith(f"{STATE}/experts/logits/")
            and "--kl-divergence" not in one.words
        ]
        for node in birth.nodes.nodes
    }
    assert len([name for name, some in runs.items() if some]) == 1, runs


def test_an_engine_reads_its_shard_and_cannot_change_it(nodes: Cluster) -> None:
    for node in nodes.nodes:
        path, pid = shard_path(node), node.main_pid(UNIT)
        maps = node.read(f"/proc/{pid}/maps")
        assert path in maps
        assert "tiny-moe.gguf" not in maps
        owner = node.run(["stat", "-c", "%U", f"/proc/{pid}"], check=True).stdout.strip()
        assert owner not in ("root", "_meshd", "nobody")
        there = ["nsenter", "-t", str(pid), "-m", "--"]
        wrote = node.run([*there, "sh", "-c", f"echo x >>{path}"])
        assert "Read-only file system" in wrote.stderr
        user = node.run(["stat", "-c", "%u", f"/proc/{pid}"], check=True).stdout.strip()
        as_engine = [*there, "setpriv", f"--reuid={user}", "--clear-groups"]
        looked = node.run([*as_engine, "ls", SHARDS, f"{STATE}/experts"])
        assert path.rpartition("/")[2] in looked.stdout
        assert "rankings" not in looked.stdout
        assert names(node, SHARDS) == [path.rpartition("/")[2]]
        assert sha256(node, path) == certificate(node)["shard_sha256"]


def test_everybody_says_how_good_it_is(nodes: Cluster) -> None:
    for node in nodes.nodes:
        found = replicas(node)
        assert found.keys() == {one.name for one in nodes.nodes}
        kept = certificate(node)
        own = found[node.name]
        assert own["measured"] == kept["measured"]
        assert {one["domain"] for one in own["measured"]} == set(DOMAINS)
        assert (own["experts"], own["experts_all"]) == (kept["experts"], EXPERTS)
        assert names(node, CERTIFICATES) == [f"{kept['key']}.json"]
        status = node.run(["meshd", "status"]).stdout
        shown = f"{MODEL}: ready, expert-shard ({kept['experts']} of {EXPERTS} experts, "
        assert shown in status
        assert all(f" {domain}" in status.partition(shown)[2] for domain in DOMAINS)
    plan = nodes.nodes[0].run(["meshd", "plan", "--explain"], timeout_s=30).stdout
    rows = [line.split() for line in plan.splitlines() if " expert-shard " in line]
    taken = [row for row in rows if row[0] == ">"]
    assert {row[2] for row in taken} == {node.name for node in nodes.nodes}, plan
    assert all("top-1" in row for row in taken), plan


def test_answers_say_what_they_come_from(nodes: Cluster) -> None:
    for node in nodes.nodes:
        answer = inside.chat(node, MODEL)
        assert answer.good, str(answer)
        one = replicas(node)[answer.node]
        said = dict(
            part.split("=") for part in answer.head["X-Mesh-Quality"].split("; ") if "=" in part
        )
        assert answer.head["X-Mesh-Quality"].startswith("shard; ")
        assert said["experts"] == f"{one['experts']}/{EXPERTS}"
        least = min(float(it["top1"]) for it in one["measured"])
        assert least - 0.001 < float(said["top1"]) <= least
        assert 0 <= float(said["kl"]) - worst(one, "kl") < 0.001
        assert 0 <= float(said["perplexity"]) - worst(one, "perplexity_ratio") < 0.001
