"""What of a mixture's tensors is by expert, told from names and keys, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q

from meshd.errors import UserError
from meshd.experts.anatomy import Anatomy, UndividableError, anatomy
from meshd.experts.shard_key import shard_key
from meshd.experts.shard_mark import written
from meshd.models.gguf_facts import read_facts
from meshd.models.gguf_header import Array, GgufError, Scalar, Tensor
from meshd.models.metadata import Metadata
from tools.memory_table.models import MODELS
from tools.memory_table.sparse import Shape, write

WIDTH, HIDDEN, EXPERTS = 64, 32, 8
Keys = dict[str, Scalar | Array]


def by_blocks(values: list[int]) -> Array:
    return Array(len(values), "", tuple(values))


def tensor(name: str, *shape: int, kind: Q = Q.F32) -> Tensor:
    return Tensor(name, shape, kind, 0, 4)


def block(number: int, *more: Tensor, experts: int = EXPERTS) -> list[Tensor]:
    """A block in the commonest style."""
    named = [
        tensor("attn_q.weight", WIDTH, WIDTH),
        tensor("attn_q_norm.weight", 8),  # as wide as there are experts, by chance
        tensor("ffn_norm.weight", WIDTH),
        tensor("ffn_gate_inp.weight", WIDTH, experts),
        tensor("ffn_gate_exps.weight", WIDTH, HIDDEN, experts, kind=Q.Q4_0),
        tensor("ffn_up_exps.weight", WIDTH, HIDDEN, experts, kind=Q.Q4_0),
        tensor("ffn_down_exps.weight", HIDDEN, WIDTH, experts, kind=Q.Q4_0),
        *more,
    ]
    return [replace(one, name=f"blk.{number}.{one.name}") for one in named]


def dense(number: int) -> list[Tensor]:
    return [
        tensor(f"blk.{number}.attn_q.weight", WIDTH, WIDTH),
        tensor(f"blk.{number}.ffn_up.weight", WIDTH, HIDDEN),
    ]


def keys(blocks: int, *, of: str = "anymoe", **more: Scalar | Array) -> Metadata:
    named: Keys = {"block_count": blocks, "expert_count": EXPERTS, "expert_used_count": 2, **more}
    values: Keys = {f"{of}.{name}": value for name, value in named.items()}
    return Metadata(Path("m.gguf"), values, of)


def found(metadata: Metadata, tensors: list[Tensor]) -> Anatomy:
    result = anatomy(metadata, tensors)
    assert result is not None
    return result


def cut_of(*more: Tensor) -> set[str]:
    """What is cut of a block with these tensors, beyond the commonest."""
    plain = set(found(keys(1), block(0)).cut)
    return {name.removeprefix("blk.0.") for name in found(keys(1), block(0, *more)).cut} - {
        name.removeprefix("blk.0.") for name in plain
    }


def test_the_commonest_style() -> None:
    one = found(keys(2), [*block(0), *block(1), tensor("token_embd.weight", WIDTH, 100)])
    assert sorted(one.cut) == sorted(
        f"blk.{number}.ffn_{name}"
        for number in range(2)
        for name in ("gate_inp.weight", "gate_exps.weight", "up_exps.weight", "down_exps.weight")
    )
    assert set(one.cut.values()) == {0, 1}
    assert (one.experts, one.used, one.groups, one.counted) == (8, 2, 0, (8, 8))
    assert (one.least, one.step) == (2, 1)


def test_biases_scales_and_fused_tensors_are_cut_too() -> None:
    assert cut_of(
        tensor("ffn_gate_up_exps.weight", WIDTH, 2 * HIDDEN, EXPERTS),  # Qwen3-next, Gemma 4
        tensor("ffn_gate_inp.bias", EXPERTS),  # gpt-oss, as are the next
        tensor("ffn_gate_exps.bias", HIDDEN, EXPERTS),
        tensor("ffn_down_exps.scale", EXPERTS),  # Gemma 4, NVFP4
        tensor("ffn_down_exps.input_scale", EXPERTS),  # NVFP4
        tensor("exp_probs_b.bias", EXPERTS),  # DeepSeek V3, GLM 4.5, Ernie 4.5
        tensor("exp_probs_b_vl.bias", EXPERTS),  # DeepSeek V4
    ) == {
        "ffn_gate_up_exps.weight", "ffn_gate_inp.bias", "ffn_gate_exps.bias",
        "ffn_down_exps.scale", "ffn_down_exps.input_scale", "exp_probs_b.bias",
        "exp_probs_b_vl.bias",
    }  # fmt: skip
    # An early converter of DeepSeek's wrote it without a suffix.
    assert cut_of(tensor("exp_probs_b", EXPERTS)) == {"exp_probs_b"}


def test_what_all_experts_share_stays_whole() -> None:
    assert not cut_of(
        tensor("ffn_gate_shexp.weight", WIDTH, EXPERTS),  # as wide as there are experts, by chance
        tensor("ffn_gate_up_shexp.weight", WIDTH, EXPERTS),
        tensor("ffn_gate_inp_shexp.weight", WIDTH),
        tensor("ffn_gate_inp.scale", EXPERTS),  # Gemma 4: by width
        tensor("ffn_norm_exps.weight", EXPERTS),  # Arctic: by width
        tensor("ffn_latent_down.weight", WIDTH, EXPERTS),  # Nemotron H
        tensor("ffn_routed_norm.weight", EXPERTS),  # Kimi
        tensor("ffn_down.weight", EXPERTS, WIDTH),  # Gemma 4, Arctic: dense beside the experts
        tensor("attn_k_b.weight", 16, 16, EXPERTS),  # DeepSeek: by head
        tensor("ssm_conv1d.weight", 4, EXPERTS),
    )


@pytest.mark.parametrize("shape", [one for one in MODELS if one.experts], ids=lambda s: s.name)
def test_published_models(shape: Shape, tmp_path: Path) -> None:
    small = replace(shape, layers=5, vocabulary=512)
    facts = read_facts(write(small, tmp_path))
    assert (facts.undividable, facts.expert_groups) == ("", 0)


def test_dense_blocks_first_between_and_predicting_ones() -> None:
    tensors = [*dense(0), *block(1), *dense(2), *block(3)]
    one = found(keys(4, leading_dense_block_count=1, nextn_predict_layers=1), tensors)
    assert one.counted == (0, 8, 0, 0)
    assert set(one.cut.values()) == {1, 3}
    assert one.complete(((), (1, 2, 5), (), ())) == ((), (1, 2, 5), (), (0, 1, 2))
    assert one.complete(((), (1, 2), (), (3, 4))) == ((), (1, 2), (), (3, 4))


def test_the_most_used_of_all_blocks_counts() -> None:
    tensors = [*block(0), *block(1)]
    assert found(keys(2, expert_used_count=by_blocks([1, 4])), tensors).used == 4


@pytest.mark.parametrize("experts", [0, 1])
def test_no_mixture_is_none(experts: int) -> None:
    metadata = keys(2, expert_count=experts, expert_used_count=0)
    assert anatomy(metadata, [*dense(0), *dense(1)]) is None


REFUSED: dict[str, tuple[Metadata, list[Tensor], str]] = {
    "tensors of each expert": (
        keys(1),
        [*block(0)[:4], tensor("blk.0.ffn_gate.3.weight", WIDTH, HIDDEN)],
        "no longer loads them",
    ),
    "grove's chunk experts": (
        keys(1),
        block(0, tensor("ffn_gate_chexps.weight", WIDTH, HIDDEN, 2)),
        "several routed ones share",
    ),
    "choice by token": (
        keys(1),
        block(0, tensor("ffn_gate_tid2eid.weight", 2, 100, kind=Q.I32)),
        "by the token's id",
    ),
    "unknown by expert": (
        keys(1),
        block(0, tensor("ffn_expert_bias.weight", WIDTH, EXPERTS)),
        "ffn_expert_bias.weight may be by expert",
    ),
    "another router": (
        keys(1), block(0, tensor("router_mix.weight", EXPERTS)), "may be by expert",
    ),
    "unknown with three dimensions": (
        keys(1),
        block(0, tensor("ffn_mixed.weight", WIDTH, HIDDEN, EXPERTS)),
        "may be by expert",
    ),
    "no router": (
        keys(1),
        [one for one in block(0) if "gate_inp" not in one.name],
        "experts, but no ffn_gate_inp.weight",
    ),
    "no experts to the router": (
        keys(1),
        [one for one in block(0) if "down_exps" not in one.name],
        "but no ffn_down_exps.weight",
    ),
    "another number in a block": (
        keys(2), [*block(0), *block(1, experts=4)], "is of 4 experts, the model of 8",
    ),
    "a number by block": (
        keys(2, expert_count=by_blocks([8, 4])), [*block(0), *block(1)], "different numbers",
    ),
    "experts in name only": (keys(1), dense(0), "no block has tensors of them"),
    "none used": (keys(1, expert_used_count=0), block(0), "uses 0 of its 8"),
    "more used than there are": (keys(1, expert_used_count=9), block(0), "uses 9 of its 8"),
    "groups of unequal size": (
        keys(1, expert_group_count=3, expert_group_used_count=1), block(0), "in 3 groups",
    ),
    "no group chosen": (keys(1, expert_group_count=4), block(0), "of which 0 are chosen"),
    "values of a bias in one block": (
        keys(1),
        block(0, tensor("exp_probs_b.bias", 32, kind=Q.Q8_0), experts=32),
        "is of 32 experts",
    ),
    "a quantised bias": (
        keys(1, expert_count=32),
        block(0, tensor("exp_probs_b.bias", 32, kind=Q.Q8_0), experts=32),
        "hold several experts' values",
    ),
    "numbers by expert": (
        keys(1, expert_bonus=by_blocks([1] * 8)), block(0), r"expert_bonus has 8 values",
    ),
    "maverick": (
        keys(1, of="llama4", expert_count=128), block(0, experts=128), "apart by their 128 experts",
    ),
    "only the predicting block": (
        keys(1, nextn_predict_layers=1), block(0), "only its blocks for multi-token prediction",
    ),
    "a shard": (
        Metadata(Path("m"), {**keys(1).values, "meshd.shard.source": "00"}, "anymoe"),
        block(0),
        "is itself a shard",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_in_a_sentence(case: str) -> None:
    metadata, tensors, said = REFUSED[case]
    with pytest.raises(UndividableError, match=said) as caught:
        anatomy(metadata, tensors)
    assert "\n" not in caught.value.message
    assert isinstance(caught.value, UserError)


def test_nonsense_in_a_key_is_the_files_fault() -> None:
    with pytest.raises(GgufError, match="expert_group_count"):
        anatomy(keys(1, expert_group_count="many"), block(0))


def grouped(blocks: int, predicting: int = 0) -> Metadata:
    return keys(
        blocks, expert_count=16, expert_group_count=4, expert_group_used_count=2,
        nextn_predict_layers=predicting,
    )  # fmt: skip


def test_groups_keep_equally_many() -> None:
    one = found(grouped(1), block(0, experts=16))
    assert (one.groups, one.step, one.least) == (4, 4, 8)
    assert (one.used_of(8), one.used_of(16)) == (4, 8)
    ids = (0, 3, 4, 5, 9, 10, 13, 15)
    assert one.complete((ids,)) == (ids,)
    with pytest.raises(UserError, match="equally many experts of each group"):
        one.complete(((0, 1, 2, 5, 9, 10, 13, 15),))
    with pytest.raises(UserError, match="10 experts a layer cannot be kept, only 8 to 16 in steps"):
        one.complete(((*ids, *(1, 2)),))


def test_predicting_blocks_keep_the_first_of_each_group() -> None:
    tensors = [*block(0, experts=16), *block(1, experts=16)]
    one = found(grouped(2, 1), tensors)
    ids = (0, 3, 4, 5, 9, 10, 13, 15)
    assert one.complete((ids, ())) == (ids, (0, 1, 4, 5, 8, 9, 12, 13))


WRONG = {
    "too few blocks": (((0, 1),), "of 1 blocks, the model has 3"),
    "one expert": (((), (0,), (0,)), "1 experts a layer cannot be kept, only 2 to 8"),
    "none": (((), (), ()), "0 experts a layer"),
    "more than there are": (((), tuple(range(9)), tuple(range(9))), "9 experts a layer"),
    "unequal numbers": (((), (0, 1), (0, 1, 2)), "block 1 is to keep 2 experts and another one 3"),
    "none of a block that has some": (((), (0, 1), ()), "block 2 is to keep 0"),
    "of a dense block": (((0, 1), (0, 1), (0, 1)), "block 0 has no experts"),
    "twice": (((), (0, 0), (0, 1)), "block 1 do not ascend"),
    "descending": (((), (1, 0), (0, 1)), "block 1 do not ascend"),
    "unknown": (((), (0, 8), (0, 1)), "block 1 has experts 0 to 7"),
    "negative": (((), (-1, 1), (0, 1)), "block 1 has experts 0 to 7"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_selection_is_refused(case: str) -> None:
    selection, said = WRONG[case]
    with pytest.raises(UserError, match=re.escape(said)):
        found(keys(3), [*dense(0), *block(1), *block(2)]).complete(selection)


def test_kept_ids_in_few_words() -> None:
    assert written(((0, 1, 2, 3, 7), (), (1, 3), (5,))) == "0-3,7;;1,3;5"


def test_the_key_tells_everything_apart() -> None:
    selection = ((0, 1, 4), (2, 3, 4))
    one = shard_key("f" * 16, "r" * 16, selection)
    assert re.fullmatch("[0-9a-f]{24}", one)
    assert one == shard_key("f" * 16, "r" * 16, selection)
    others = {
        shard_key("e" * 16, "r" * 16, selection),
        shard_key("f" * 16, "s" * 16, selection),
        shard_key("f" * 16, "r" * 16, ((0, 1, 4), (2, 3, 5))),
        shard_key("f" * 16, "r" * 16, ((0, 1), (4, 2, 3, 4))),
        shard_key("f" * 16, "r" * 16, (*selection, ())),
    }
    assert len(others) == 5
    assert one not in others
