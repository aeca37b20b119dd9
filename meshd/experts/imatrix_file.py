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
from meshd.models.gguf_header import GgufError, Header, Tensor, read_header

# All of a layer's matrices are chosen by the same ids. Models have three of them, or two where gate
# and up lie in one.
_BY_EXPERT = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts")


def read_counts(
    path: Path, experts: tuple[int, ...], idle: frozenset[int] = frozenset()
) -> tuple[tuple[int, ...], ...]:
    """By block and expert; () of a block without, and of one that is idle.

    :param experts: routed experts of each of the model's blocks, 0 of one without.
    :param idle: blocks that ordinary decoding does not run, so that nothing was counted there.
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
                if named is None or int(named[1]) in idle:
                    continue
                file.seek(header.data_offset + tensor.offset)
                counts = _whole(tensor, file.read(tensor.size_bytes))
                if found.setdefault(int(named[1]), counts) != counts:
                    raise RankingError(f"{tensor.name} has other counts than its layer's others")
    except GgufError as error:
        raise RankingError(str(error)) from error
    except OSError as error:
        raise RankingError(f"{path}: {error.strerror or error}") from error
    return _by_block(found, header, experts, idle)


def _whole(tensor: Tensor, data: bytes) -> tuple[int, ...]:
    if tensor.type != GGMLQuantizationType.F32 or len(data) != 4 * tensor.elements:
        raise RankingError(f"{tensor.name} holds no counts")
    numbers = struct.unpack(f"<{tensor.elements}f", data)
    if not all(math.isfinite(one) and one >= 0 and one == int(one) for one in numbers):
        raise RankingError(f"{tensor.name} holds what is no count")
    return tuple(int(one) for one in numbers)


def _by_block(
    found: dict[int, tuple[int, ...]],
    header: Header,
    experts: tuple[int, ...],
    idle: frozenset[int],
) -> tuple[tuple[int, ...], ...]:
    if strange := [block for block in found if block >= len(experts) or not experts[block]]:
        raise RankingError(f"llama-imatrix counted experts in layer {strange[0]}, which has none")
    layers = []
    for block, wanted in enumerate(experts):
        layer = () if block in idle else found.get(block, ())
        if wanted and block not in idle and len(layer) != wanted:
            there = f"{len(layer)} experts" if layer else "no expert"
            raise RankingError(
                f"llama-imatrix counted {there} of the {wanted} in layer {block}"
                f" ({len(header.tensors)} tensors in all)"
            )
        layers.append(layer)
    return tuple(layers)
