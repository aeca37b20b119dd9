"""What the benchmark of shards makes of what was measured, and how it divides experts otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from meshd.planner.shard_plan import shard_plan
from tests.unit.planner_shards.rankings import falling, ranking
from tools.bench_experts import by_domain, figures, plans, quality
from tools.bench_experts.figures import Chunk, Estimate, LostError, chunks_of
from tools.bench_experts.halves import middle

# As llama-perplexity 0.7.0 writes it: each row is a mean over all chunks so far.
SAID = """
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1      93.1499 ±   12.4021       0.10000 ±    0.02000       0.20000 ±    0.01000     5.123 ±  0.400 %    80.000 ±  2.500 %
   2     100.0000 ±   10.0000       0.20000 ±       -nan       0.25000 ±    0.01000     5.000 ±  0.300 %    70.000 ±  2.000 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  98.000000 ±   1.113468
"""  # noqa: E501


def test_chunks_are_taken_apart() -> None:
    one, two = chunks_of(SAID, 2)
    assert (one.top1, one.log_ratio, one.kl) == (0.8, 0.1, 0.2)
    assert (two.top1, two.log_ratio, two.kl) == pytest.approx((0.6, 0.3, 0.3))


@pytest.mark.parametrize(
    "said", ["", SAID.replace("   2     100", "   3     100"), SAID.partition("   2  ")[0]]
)
def test_a_chunk_that_is_missing_is_noticed(said: str) -> None:
    with pytest.raises(LostError):
        chunks_of(said, 2)


def loss(*top1: float, domain: str = "code") -> figures.Loss:
    return {domain: tuple(Chunk(one, 0.1, 0.2) for one in top1)}


def test_shards_are_compared_chunk_by_chunk() -> None:
    # What all chunks have in common is not in the error of a difference.
    one, other = loss(0.9, 0.7, 0.5), loss(0.8, 0.6, 0.4)
    gain = figures.gain(one, [other])
    assert gain.mean == pytest.approx(0.1)
    assert gain.error == pytest.approx(0, abs=1e-9)
    assert figures.top1(one).error == pytest.approx(0.2 / math.sqrt(3))
    assert figures.gain(one, [other, one]).mean == pytest.approx(0.05)
    assert figures.top1(figures.averaged([one, other])).mean == pytest.approx(0.65)
    assert figures.perplexity_ratio(one) == pytest.approx(math.exp(0.1))


def test_one_chunk_says_nothing_of_its_error() -> None:
    assert figures.estimate([0.5]) == Estimate(0.5, math.inf)


def test_a_small_lead_is_none() -> None:
    assert quality.verdict(Estimate(0.05, 0.01)) == "+5.00 ± 1.00"
    assert quality.verdict(Estimate(0.01, 0.01)).endswith("no clear difference")
    assert quality.verdict(Estimate(-0.05, 0.01)).endswith("it is **worse**")


def test_the_table_shows_each_way_beside_the_first() -> None:
    ways = (
        quality.Way(quality.PER_LAYER, 0.8, loss(0.9, 0.7)),
        quality.Way(quality.GLOBAL, 0.7, loss(0.8, 0.6)),
    )
    *_, first, second = quality.shown([quality.Row(0.75, 12, 13_900_000, 612, ways)]).splitlines()
    assert first.startswith("| 75% (12) | 13.9 | 612 | per layer | 80.0% | 80.0 ± 10.0 | 1.105 |")
    assert second.endswith("| +10.00 ± 0.00 |")
    assert first.count("|") == second.count("|") == 10


def test_the_original_divides_by_one_ranking_in_turn() -> None:
    # Summed over both layers: 1, 0, 2, 3.
    found = plans.original(ranking((8, 1, 4, 2), (0, 9, 3, 5)), ("A", "B"), 2)
    assert found == {"A": ((0, 1, 2), (0, 1, 2)), "B": ((0, 1, 3), (0, 1, 3))}


@pytest.mark.parametrize("rooms", plans.MESHES)
def test_the_original_fits_with_another_core_only(rooms: dict[str, int]) -> None:
    ours, most, fitting, original = plans.ways(falling(3, 16), rooms, 16)
    assert [way.fits for way in (ours, most, fitting, original)] == [True, True, True, False]
    assert "core 4" in fitting.name
    sizes = {node: len(own[0]) for node, own in most.selections.items()}
    assert sizes == rooms
    for node, room in rooms.items():
        assert len(fitting.selections[node][0]) <= room
        # Whoever has no other node to think of keeps at least as much.
        assert falling(3, 16).mass(0, ours.selections[node][0]) <= falling(3, 16).mass(
            0, most.selections[node][0]
        )


@pytest.mark.parametrize("rooms", by_domain.MESHES)
def test_experts_dealt_by_domain_all_have_a_home(rooms: dict[str, int]) -> None:
    counts = {name: falling(4, 16, seed) for seed, name in enumerate(("prose", "man", "code"))}
    whole = falling(4, 16, 9)
    plan = shard_plan(whole, rooms, experts=16)
    dealt = by_domain.dealt_by_domain(plan, whole, counts)
    for block in range(4):
        kept = {node: own[block] for node, own in dealt.items()}
        assert {node: len(own) for node, own in kept.items()} == rooms
        assert all(list(own) == sorted(set(own)) for own in kept.values())
        assert set().union(*kept.values()) == set(range(16))
        core = set(whole.orders[block][: plan.core[block]])
        assert all(core <= set(own) for own in kept.values())


def test_experts_go_to_the_node_whose_domain_prefers_them() -> None:
    counts = {"prose": ranking((50, 30, 0, 20)), "code": ranking((50, 0, 30, 20))}
    whole = ranking((100, 30, 30, 40))
    plan = shard_plan(whole, {"A": 3, "B": 3}, experts=4)
    assert plan.core == (2,)
    dealt = by_domain.dealt_by_domain(plan, whole, counts)
    assert dealt == {"A": ((0, 1, 3),), "B": ((0, 2, 3),)}


NOISE = (0.0, 0.02, -0.02, 0.01, -0.01, 0.0)


def row(*nodes: tuple[float, float]) -> by_domain.Row:
    """:param nodes: of each its top-1 on prose and on code."""
    losses = {
        name: {
            "prose": loss(*(prose + one for one in NOISE))["code"],
            "code": loss(*(code - one for one in NOISE))["code"],
        }
        for name, (prose, code) in zip("ABC", nodes, strict=False)
    }
    return by_domain.Row(by_domain.BY_DOMAIN, dict.fromkeys(losses, 10), losses)


def test_knowing_the_domain_pays_where_nodes_differ_by_it() -> None:
    special = row((0.9, 0.6), (0.7, 0.8))
    assert [special.best((domain,)) for domain in ("prose", "code")] == ["A", "B"]
    assert special.over_average(("prose",)).mean == pytest.approx(0.1)
    assert special.over_average(special.domains).mean == pytest.approx(0.1)
    # Both are best for all in some chunks; beside either the other one helps.
    assert special.over_best(special.domains).mean == pytest.approx(0.1, abs=0.001)
    by_mass = replace(row((0.85, 0.75), (0.8, 0.7)), dealt=by_domain.BY_MASS)
    *_, prose, _, overall = by_domain.shown([by_mass, special]).splitlines()
    assert prose.startswith("| 10/10 | by domain | prose | A 90.0 ± 0.6, B 70.0 ± 0.6 | +10.00 ±")
    assert overall.endswith("| +5.00 ± 0.00 |")  # 85 instead of 80


def test_a_node_that_is_best_at_everything_needs_no_knowledge() -> None:
    one = row((0.9, 0.8), (0.7, 0.6))
    assert one.over_average(one.domains).mean == pytest.approx(0.1)
    assert one.over_best(one.domains) == Estimate(0, 0)


def test_luck_is_no_knowledge() -> None:
    # Each is best at one half of the chunks: what is chosen on the others is wrong here.
    chunks = (0.5, 0.7) * 4
    lucky = by_domain.Row("", {}, {"A": loss(*chunks), "B": loss(*chunks[1:], 0.5)})
    assert lucky.over_average(("code",)).mean < 0


def test_a_domain_is_cut_at_a_paragraph() -> None:
    text = b"one two\n\nthree four\n\nfive"
    assert text[: middle(text)] == b"one two\n\nthree four\n\n"
    assert middle(b"no paragraphs") == 6
