"""Bounds as text: what is written is read again as the same, and what cannot be read is exact."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.mesh.record import NodeRecord, Wish
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.wishes import wanted
from meshd.quality import EXACT, Budget, Fidelity, parse, quality_of, shortfalls, strictest

BUDGETS = st.builds(
    Budget,
    min_top1=st.none() | st.floats(0, 1),
    max_perplexity_ratio=st.none() | st.floats(1, 100),
    max_kl=st.none() | st.floats(0, 100),
)


@given(BUDGETS)
def test_what_is_written_is_read_as_the_same(budget):
    assert parse(str(budget)) == quality_of(str(budget)) == budget


def test_it_is_written_as_people_write_it():
    assert str(EXACT) == "exact"
    assert str(Budget(min_top1=0.95)) == "min_top1=0.95"
    assert str(Budget(min_top1=1.0, max_kl=0.05)) == "min_top1=1, max_kl=0.05"


@given(st.text() | st.from_regex(r"(min_top1|max_kl|exact|[=, .0-9einf-]){0,8}", fullmatch=True))
def test_whatever_another_node_says_has_a_meaning(text):
    budget = quality_of(text)
    for bound in (budget.min_top1, budget.max_perplexity_ratio, budget.max_kl):
        assert bound is None or math.isfinite(bound)


@pytest.mark.parametrize(
    "text",
    ["", "high", "fair", "min_top1", "min_top1=nan", "min_top1=2", "max_kl=-1", "max_perplexity=2",
     "min_top1=0.9,", "min_top1=0.9, min_top1=0.8", "exact, min_top1=0.9", "max_kl=inf"],
)  # fmt: skip
def test_what_cannot_be_read_is_exact(text):
    assert quality_of(text) == EXACT
    with pytest.raises(ValueError, match="quality"):
        parse(text)


def test_where_configurations_differ_the_strictest_counts_and_a_note_says_so():
    asks = {"a": "min_top1=0.9", "b": "exact"}
    members = tuple(
        MemberView(
            node,
            1,
            Status.ALIVE,
            NodeRecord(id=node, name=node, wishes=(Wish("m", "m.gguf", quality=text),)),
        )
        for node, text in asks.items()
    )
    (one,) = wanted(MeshView("a", members))
    assert one.quality == "exact"
    assert one.notes == ("quality: exact and min_top1=0.9 are asked for; exact keeps all of them",)


def test_by_how_much_a_bound_is_missed_is_never_rounded_to_the_bound():
    budget = Budget(min_top1=0.95, max_perplexity_ratio=1.05, max_kl=0.1)
    assert shortfalls(budget, [Fidelity("prose", 0.95, 1.05, 0.1)]) == ()
    assert shortfalls(budget, [Fidelity("prose", 0.949999, 1.050001, 0.100001)]) == (
        "top-1 agreement on prose is 0.949, not 0.95",
        "perplexity on prose is 1.051 times the model's, at most 1.05 may be",
        "KL divergence on prose is 0.101, at most 0.1 may be",
    )


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Budget(min_top1=0.9), EXACT, EXACT),
        (EXACT, Budget(max_kl=1), EXACT),
        (Budget(min_top1=0.9), Budget(min_top1=0.95), Budget(min_top1=0.95)),
        (Budget(min_top1=0.9), Budget(max_kl=0.1), Budget(min_top1=0.9, max_kl=0.1)),
        (Budget(max_kl=0.2), Budget(max_kl=0.1), Budget(max_kl=0.1)),
        (
            Budget(max_perplexity_ratio=1.1),
            Budget(max_perplexity_ratio=1.5),
            Budget(max_perplexity_ratio=1.1),
        ),
    ],
)
def test_the_strictest_of_two_keeps_both(one: Budget, other: Budget, both: Budget) -> None:
    assert strictest(one, other) == strictest(other, one) == both
