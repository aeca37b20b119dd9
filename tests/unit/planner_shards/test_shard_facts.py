"""A mixture with fewer experts, as its facts say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.models.facts import GgufFacts
from meshd.models.gguf_facts import read_facts
from meshd.planner.pace import Pace, predict_solo
from meshd.planner.plan import Layout
from meshd.planner.shard_facts import least_experts, shard_facts, used_of
from tests.unit.worlds import facts as plain
from tools.memory_table.models import MODELS
from tools.memory_table.sparse import Shape, write

SHAPES = {shape.name: replace(shape, vocabulary=4096) for shape in MODELS}
MIXTURES = sorted(name for name, shape in SHAPES.items() if shape.experts)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("share", [1, 2, 4])
def test_a_shard_is_as_a_model_that_was_made_with_so_many_experts(
    name: str, share: int, tmp_path: Path
) -> None:
    whole = SHAPES[name]
    kept = max(whole.experts_used, whole.experts // share)
    facts = shard_facts(read_facts(write(whole, tmp_path)), kept)
    smaller: Shape = replace(whole, experts=kept)
    real = read_facts(write(smaller, tmp_path))
    # The header, and what the tensors are aligned by.
    assert abs(facts.file_bytes - real.file_bytes) <= 64 * 32 * len(facts.layers)
    assert replace(facts, file_bytes=0) == replace(real, file_bytes=0)


def test_the_files_are_the_shards_own_once_it_is_written() -> None:
    whole = plain(expert_share=0.5)
    assert shard_facts(whole, 8).files == whole.files
    assert shard_facts(whole, 8, ("/var/lib/mesh/shards/x.gguf",)).files == (
        "/var/lib/mesh/shards/x.gguf",
    )


def test_asked_again_they_are_the_same_object() -> None:
    """What memory they take is remembered by identity, and every pass asks for it."""
    whole = plain(expert_share=0.5)
    assert shard_facts(whole, 8) is shard_facts(whole, 8)


@pytest.mark.parametrize("experts", [0, -1, 17])
def test_no_model_has_more_experts_than_it_has(experts: int) -> None:
    with pytest.raises(ValueError, match="of 16 experts"):
        shard_facts(plain(expert_share=0.5), experts)
    with pytest.raises(ValueError, match="of 0 experts"):
        shard_facts(plain(), 1)


def test_a_shard_is_read_as_fast_as_the_whole() -> None:
    """A token uses as many experts as before; only what they are chosen from is less."""
    whole = plain(expert_share=0.5)
    speeds = {"g": Pace(1e12, 1e13)}

    def tokens_s(facts: GgufFacts) -> float:
        return predict_solo(facts, Layout(("g",), (len(facts.layers) + 1,)), 4096, speeds)

    assert tokens_s(shard_facts(whole, 8)) == pytest.approx(tokens_s(whole), rel=0.01)


def test_groups_that_are_not_chosen_lend_no_experts() -> None:
    """As DeepSeek-V3: of 256 experts in 8 groups 4 groups are chosen, then 8 experts."""
    grouped = replace(
        plain(expert_share=0.5), experts=256, experts_used=8, expert_groups=8, expert_groups_used=4
    )
    assert used_of(grouped, 8) == 4
    assert used_of(grouped, 16) == 8
    assert shard_facts(grouped, 8).experts_used == 4
    assert least_experts(grouped) == 16
    assert least_experts(replace(grouped, experts_used=4)) == 16
    assert least_experts(replace(grouped, experts_used=12)) == 24
    assert least_experts(replace(grouped, expert_groups=0)) == 8
    assert least_experts(plain(expert_share=0.5)) == 2


def test_fewer_experts_than_a_token_uses_are_all_that_it_uses() -> None:
    assert shard_facts(plain(expert_share=0.5), 1).experts_used == 1


def test_with_few_experts_another_tensor_is_the_largest() -> None:
    whole = plain(expert_share=0.5)
    layer = replace(whole.layers[0], largest_tensor_bytes=1600, largest_dense_bytes=600)
    whole = replace(whole, layers=(layer, replace(layer, expert_bytes=0)))
    assert [one.largest_tensor_bytes for one in shard_facts(whole, 8).layers] == [800, 1600]
    assert [one.largest_tensor_bytes for one in shard_facts(whole, 4).layers] == [600, 1600]


@given(st.integers(1, 16), st.integers(1, 16))
def test_more_experts_are_never_less_bytes(one: int, other: int) -> None:
    whole = plain(expert_share=0.5)
    few, many = (shard_facts(whole, count) for count in sorted((one, other)))
    assert few.file_bytes <= many.file_bytes
    assert few.parameters <= many.parameters
