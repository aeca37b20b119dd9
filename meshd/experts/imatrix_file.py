"""Expert counts out of what llama-imatrix writes.

Format: `IMatrixCollector::save_imatrix` in upstream's tools/imatrix/imatrix.cpp: a GGUF in which
each matrix that was multiplied with has a tensor ``NAME.counts`` of F32, for one that is kept by
expert with one number an expert: how many tokens were sent to it.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

from gguf.constants import GGMLQuantizationType

from meshd.experts.ranking import RankingError
from meshd.models.gguf_header import GgufError, Tensor, read_header

# All of a layer's matrices are chosen by the same ids. Models have three of them, or two where gate
# and up lie in one.
_BY_EXPERT = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts")


def read_counts(path: Path, experts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """By block and expert.

    :param experts: to be counted in each of the model's blocks, 0 where none are; what was counted
        there is left out.
    :raises RankingError: the file cannot be read, or has not these counts.
    """
    try:
        header = read_header(path)
        if header.metadata.get("general.type") != "imatrix":
            raise RankingError(f"{path}: this is no file of llama-imatrix")
        with path.open("rb") as file:
            found: dict[int, tuple[int, ...]] = {}
            for tensor in header.tensors:
                named = _BY_EXPERT.fullmatch(tensor.name)
                if named is None:
                    continue
                file.seek(header.data_offset + tensor.offset)
                counts = _whole(tensor, file.read(tensor.size_bytes))
                if found.setdefault(int(named[1]), counts) != counts:
                    raise RankingError(f"{tensor.name} has other counts than its layer's others")
    except GgufError as error:
        raise RankingError(str(error)) from error
    except OSError as error:
        raise RankingError(f"{path}: {error.strerror or error}") from error
    layers = tuple(found.get(block, ()) if wanted else () for block, wanted in enumerate(experts))
    for block, (layer, wanted) in enumerate(zip(layers, experts, strict=True)):
        if len(layer) != wanted:
            there = f"{len(layer)} experts" if layer else "no expert"
            raise RankingError(f"llama-imatrix counted {there} of the {wanted} in layer {block}")
    if strange := [block for block in found if block >= len(experts)]:
        raise RankingError(
            f"llama-imatrix counted experts in layer {strange[0]}, which is not there"
        )
    return layers


def _whole(tensor: Tensor, data: bytes) -> tuple[int, ...]:
    if tensor.type != GGMLQuantizationType.F32 or len(data) != 4 * tensor.elements:
        raise RankingError(f"{tensor.name} holds no counts")
    numbers = struct.unpack(f"<{tensor.elements}f", data)
    if not all(math.isfinite(one) and one >= 0 and one == int(one) for one in numbers):
        raise RankingError(f"{tensor.name} holds what is no count")
    return tuple(int(one) for one in numbers)
