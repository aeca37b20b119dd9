from __future__ import annotations

import random

from meshd.mesh.view import Status
from meshd.planner.wishes import wanted
from tests.unit.planner_mesh.meshes import mesh, node, wish


def test_the_most_demanding_wish_counts() -> None:
    one = node("a", wishes=[wish("m", least=1, most=2)])
    two = node("b", wishes=[wish("m", least=2, most=5)])
    (asked,) = wanted(mesh(one, two))
    assert (asked.least, asked.most) == (2, 5)
    assert asked.asked_by == {"id-a", "id-b"}


def test_no_limit_beats_every_limit() -> None:
    for first, second in ((None, 3), (3, None)):
        view = mesh(
            node("a", wishes=[wish("m", most=first)]), node("b", wishes=[wish("m", most=second)])
        )
        assert wanted(view)[0].most is None


def test_pins_and_aliases_unite() -> None:
    view = mesh(
        node("a", wishes=[wish("m", aliases=("x",), nodes=("a",))]),
        node("b", wishes=[wish("m", aliases=("y",), nodes=("b",))]),
        node("c", wishes=[wish("m")]),
    )
    (asked,) = wanted(view)
    assert asked.aliases == ("x", "y")
    assert asked.nodes == {"a", "b"}


def test_an_alias_that_is_a_models_name_is_dropped_and_said() -> None:
    view = mesh(node("a", wishes=[wish("m", aliases=("n", "z")), wish("n", aliases=("z",))]))
    first, second = wanted(view)
    assert first.aliases == ("z",)
    assert any("alias n" in note for note in first.notes)
    assert second.aliases == ()
    assert any("alias z" in note for note in second.notes)


def test_contradictions_are_settled_by_the_smallest_id_and_told() -> None:
    view = mesh(
        node("b", wishes=[wish("m", context=4096)]), node("a", wishes=[wish("m", context=8192)])
    )
    (asked,) = wanted(view)
    assert asked.context == 8192
    assert asked.notes == ("context: 8192 on a, 4096 on b; a's is used",)


def test_whether_a_model_may_be_split_is_settled_likewise() -> None:
    view = mesh(
        node("a", wishes=[wish("m", split="never")]), node("b", wishes=[wish("m", split="auto")])
    )
    (asked,) = wanted(view)
    assert asked.split == "never"
    assert asked.notes == ("split: 'never' on a, 'auto' on b; a's is used",)


def test_a_limit_below_the_minimum_is_raised_and_told() -> None:
    view = mesh(
        node("a", wishes=[wish("m", least=3, most=3)]),
        node("b", wishes=[wish("m", least=0, most=1)]),
    )
    assert (wanted(view)[0].least, wanted(view)[0].most) == (3, 3)
    (alone,) = wanted(mesh(node("a", wishes=[wish("m", least=2, most=1)])))
    assert (alone.least, alone.most) == (2, 2)
    assert "at most 1 and at least 2" in alone.notes[0]


def test_a_suspect_nodes_wish_still_counts() -> None:
    assert wanted(mesh(node("a", wishes=[wish("m")], status=Status.SUSPECT)))


def test_the_configs_order_is_kept_and_the_members_order_does_not_matter() -> None:
    members = [
        node("a", wishes=[wish("z"), wish("b")]),
        node("b", wishes=[wish("c"), wish("z", least=4)]),
    ]
    names = [asked.model for asked in wanted(mesh(*members))]
    assert names == ["c", "z", "b"]
    random.Random(1).shuffle(members)
    shuffled = mesh(*members)
    assert wanted(shuffled) == wanted(mesh(*reversed(members)))
