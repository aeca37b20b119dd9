"""Where a mixture's experts lie in its tensors, read from their names and from the keys. Pure.

The names are llama.cpp's (``LLM_TENSOR_NAMES`` in src/llama-arch.cpp), the same for all of its
architectures, and what they are is told by `load_arch_tensors` of src/models/*.cpp: whatever is by
expert has the expert as its last dimension, so that one expert's part is one run of bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from gguf.constants import GGML_QUANT_SIZES

from meshd.errors import UserError
from meshd.experts import shard_mark
from meshd.experts.ranking import Selection
from meshd.models.gguf_header import Array, Tensor
from meshd.models.metadata import LAYERS_MAX, Metadata

_TENSOR = re.compile(r"blk\.(\d{1,4})\.(.+)")
# input_scale and scale: of NVFP4, and Gemma's scale of each expert.
_EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)_exps\.(weight|bias|scale|input_scale)")
# Of the router: rows of its matrix, its bias, and the bias that only the choice goes by (DeepSeek;
# _vl for tokens of images). Its `scale` is by width (Gemma).
_ROUTER = re.compile(r"ffn_gate_inp\.(weight|bias)|exp_probs_b(_vl)?(\.bias|\.weight)?")
_HELD_WHOLE = re.compile(r"ffn_(gate|up|down|gate_up)_shexp\..*|ffn_gate_inp_shexp\..*|"
                         r"ffn_norm_exps\..*|ffn_gate_inp\.(scale|input_scale)")  # fmt: skip
_ONE_EACH = re.compile(r"ffn_(gate|up|down)\.\d+\.weight")
_BY_GROUP = re.compile(r"ffn_(gate|up|down)_chexps\..*")
_BY_TOKEN = re.compile(r"ffn_gate_tid2eid\..*")
_SUSPICIOUS = re.compile(r"exp|router|ffn_")
# src/models/llama4.cpp: with 128 experts it leaves out a norm (use_kq_norm).
_TOLD_BY_COUNT = {"llama4": 128}
# A group's score is the sum of its two best (src/llama-graph.cpp), and one expert is no mixture.
_LEAST = 2


class UndividableError(UserError):
    """No shard can be made of this model's experts; says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A mixture's experts.

    :ivar experts: in each block that has any; ``used`` of them for a token, in the block that uses
        the most.
    :ivar groups: of experts, of which the router first chooses `groups_used`; 0 where it does not.
        A group's experts follow each other.
    :ivar counted: by block: experts that ordinary decoding chooses from, and llama-imatrix counts;
        0 of a dense block and of one for multi-token prediction.
    :ivar cut: name of each tensor that is by expert, and its block.
    """

    experts: int
    used: int
    groups: int
    groups_used: int
    counted: tuple[int, ...]
    cut: Mapping[str, int]

    @property
    def step(self) -> int:
        """How many experts a layer may have is a multiple of this."""
        return self.groups or 1

    @property
    def least(self) -> int:
        """Experts a layer with which it still runs."""
        return _LEAST * self.step

    def used_of(self, kept: int) -> int:
        """Experts for a token that a shard with so many a layer can choose at most: of groups that
        were not chosen none may be.
        """
        return kept // self.groups * self.groups_used if self.groups else kept

    def complete(self, selection: Selection) -> Selection:
        """For every block that has experts which are kept.

        Blocks of multi-token prediction need none named, since nothing counts them: they keep the
        first of each group. What such a block guesses is checked by the model, so that it costs
        speed at most.

        :raises UserError: the selection is not one of this model's.
        """
        if len(selection) != len(self.counted):
            raise UserError(
                f"the selection is of {len(selection)} blocks, the model has {len(self.counted)}"
            )
        kept = max((len(ids) for ids in selection), default=0)
        if kept % self.step or not self.least <= kept <= self.experts:
            raise UserError(
                f"{kept} experts a layer cannot be kept, only {self.least} to {self.experts}"
                + (f" in steps of {self.step}" if self.step > 1 else "")
            )
        routed = frozenset(self.cut.values())
        whole: list[tuple[int, ...]] = []
        for block, ids in enumerate(selection):
            if block not in routed:
                if ids:
                    raise UserError(f"block {block} has no experts, of which some are to be kept")
                whole.append(())
            elif ids or self.counted[block]:
                whole.append(self._checked(block, ids, kept))
            else:
                whole.append(self._first(kept))
        return tuple(whole)

    def _checked(self, block: int, ids: tuple[int, ...], kept: int) -> tuple[int, ...]:
        if len(ids) != kept:
            raise UserError(f"block {block} is to keep {len(ids)} experts and another one {kept}")
        if any(b <= a for a, b in pairwise(ids)):
            raise UserError(f"the experts to be kept of block {block} do not ascend")
        if not 0 <= ids[0] <= ids[-1] < self.experts:
            raise UserError(f"block {block} has experts 0 to {self.experts - 1}")
        if self.groups:
            size, each = self.experts // self.groups, kept // self.groups
            if any(ids[each * g] // size != g or ids[each * (g + 1) - 1] // size != g
                   for g in range(self.groups)):  # fmt: skip
                raise UserError(f"block {block} has to keep equally many experts of each group")
        return ids

    def _first(self, kept: int) -> tuple[int, ...]:
        size, each = self.experts // self.step, kept // self.step
        return tuple(g * size + one for g in range(self.step) for one in range(each))


def anatomy(metadata: Metadata, tensors: Iterable[Tensor]) -> Anatomy | None:
    """What these headers say; None of a model without routed experts.

    :raises UndividableError: there are some, but no part of them can be taken.
    :raises GgufError: a key is nonsense.
    """
    experts = _count(metadata)
    if shard_mark.SOURCE in metadata.values:
        raise UndividableError("it is itself a shard of a model")
    blocks = metadata.number("block_count", 0)
    if not 0 < blocks <= LAYERS_MAX:
        return None
    by_block: dict[int, list[tuple[str, Tensor]]] = {}
    for tensor in tensors:
        if match := _TENSOR.fullmatch(tensor.name):
            by_block.setdefault(int(match[1]), []).append((match[2], tensor))
    cut = {
        tensor.name: number
        for number, own in sorted(by_block.items())
        for tensor in _cut_of_block(number, own, experts)
    }
    if not cut:
        if experts > 1:
            raise UndividableError(f"it names {experts} experts, but no block has tensors of them")
        return None
    _check_keys(metadata, experts)
    groups, groups_used = _groups(metadata, experts)
    used = max(metadata.per_layer("expert_used_count", blocks, 0))
    if not 0 < used <= experts:
        raise UndividableError(f"it uses {used} of its {experts} experts for a token")
    routed = set(cut.values())
    decoded = blocks - metadata.number("nextn_predict_layers", 0)
    counted = tuple(
        experts if block in routed and block < decoded else 0 for block in range(blocks)
    )
    if not any(counted):
        raise UndividableError("only its blocks for multi-token prediction have experts")
    return Anatomy(experts, used, groups, groups_used, counted, cut)


def _count(metadata: Metadata) -> int:
    if metadata.array("expert_count") is not None:
        raise UndividableError("its blocks have different numbers of experts")
    return metadata.number("expert_count", 0)


def _cut_of_block(block: int, own: list[tuple[str, Tensor]], experts: int) -> list[Tensor]:
    """Those of a block's tensors that are by expert, all looked at."""
    cut = []
    for name, tensor in own:
        if _EXPERTS.fullmatch(name) or _ROUTER.fullmatch(name):
            cut.append(tensor)
        elif _ONE_EACH.fullmatch(name):
            raise UndividableError(
                f"block {block} has a tensor for each expert ({tensor.name}), "
                "as llama.cpp no longer loads them",
                hint="convert the model anew",
            )
        elif _BY_GROUP.fullmatch(name):
            raise UndividableError(
                f"block {block} has experts that several routed ones share ({tensor.name})"
            )
        elif _BY_TOKEN.fullmatch(name):
            raise UndividableError(
                f"block {block} chooses experts by the token's id ({tensor.name})"
            )
    names = {name for name, tensor in own if tensor in cut}
    if not cut:
        return []
    for needed in ("ffn_gate_inp.weight", "ffn_down_exps.weight"):
        if needed not in names:
            raise UndividableError(f"block {block} has experts, but no {needed}")
    for tensor in cut:
        _check_shape(block, tensor, experts)
    _check_others(block, own, cut, experts)
    return cut


def _check_shape(block: int, tensor: Tensor, experts: int) -> None:
    if tensor.shape[-1] != experts:
        raise UndividableError(
            f"{tensor.name} is of {tensor.shape[-1]} experts, the model of {experts}"
        )
    if len(tensor.shape) == 1 and GGML_QUANT_SIZES[tensor.type][0] != 1:
        raise UndividableError(
            f"{tensor.name} is {tensor.type.name}, whose blocks hold several experts' values"
        )


def _check_others(
    block: int, own: list[tuple[str, Tensor]], cut: list[Tensor], experts: int
) -> None:
    """Refuse what may be by expert and is not known. A width or a number of heads that happens to
    equal the number of experts is common, so the name has to raise the suspicion.
    """
    for name, tensor in own:
        if tensor in cut or _HELD_WHOLE.fullmatch(name) or not _SUSPICIOUS.search(name):
            continue
        by_name = "exp" in name or "router" in name
        if experts in tensor.shape and (by_name or len(tensor.shape) > 2):
            raise UndividableError(
                f"{tensor.name} may be by expert, and this version of meshd does not know it"
            )


def _check_keys(metadata: Metadata, experts: int) -> None:
    told = _TOLD_BY_COUNT.get(metadata.architecture)
    if told is not None and experts >= told:
        raise UndividableError(
            f"llama.cpp tells kinds of {metadata.architecture} apart by their {told} experts"
        )
    blocks = metadata.number("block_count")
    for key, value in metadata.values.items():
        if isinstance(value, Array) and "expert" in key and value.length not in (0, blocks):
            raise UndividableError(
                f"{key} has {value.length} values, and this version of meshd does not know it"
            )


def _groups(metadata: Metadata, experts: int) -> tuple[int, int]:
    groups = metadata.number("expert_group_count", 0)
    if groups <= 1:
        return 0, 0
    used = metadata.number("expert_group_used_count", 0)
    if experts % groups or not 0 < used < groups:
        raise UndividableError(
            f"its {experts} experts are in {groups} groups, of which {used} are chosen"
        )
    return groups, used
