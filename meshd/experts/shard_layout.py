"""The file of a shard before it is written: its header, and where each run of its bytes lies now.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Keys are copied as they lie
in the source, so that no tokenizer is decoded and encoded again; tensors keep their order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUFValueType

from meshd.experts import shard_mark
from meshd.experts.anatomy import Anatomy, UndividableError, anatomy
from meshd.experts.ranking import Selection
from meshd.models.gguf_header import MAGIC, Array, Header, Tensor
from meshd.models.metadata import Metadata

ZEROS = -1
"""In place of a source's number: so many zeros, up to where the next tensor begins."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_WHOLE: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h", GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """:ivar source: which of the files, from 0, or `ZEROS`. :ivar start: first byte in it."""

    source: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """:ivar header: all before the first tensor, padded."""

    header: bytes
    runs: tuple[Run, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(run.size for run in self.runs)


@dataclass(frozen=True, slots=True)
class Source:
    """A model's files as they are. :ivar keys: the first file up to its tensors."""

    path: Path
    headers: Sequence[Header]
    keys: bytes
    fingerprint: str

    def anatomy(self) -> tuple[Metadata, Anatomy]:
        """:raises UndividableError: no shard can be made of it, and why."""
        values = self.headers[0].metadata
        metadata = Metadata(self.path, values, str(values.get("general.architecture", "")))
        tensors = [tensor for header in self.headers for tensor in header.tensors]
        try:
            found = anatomy(metadata, tensors)
        except UndividableError as error:
            raise UndividableError(f"{self.path}: {error.message}", hint=error.hint) from None
        if found is None:
            raise UndividableError(f"{self.path}: it has no routed experts")
        return metadata, found


def shard_layout(source: Source, selection: Selection) -> ShardLayout:
    """:raises UserError: no shard can be made of the model, or not with these experts."""
    metadata, anatomy_ = source.anatomy()
    kept = anatomy_.complete(selection)
    alignment = source.headers[0].metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)  # the header's reader made sure
    infos: list[bytes] = []
    runs: list[Run] = []
    end = 0
    for number, header in enumerate(source.headers):
        for tensor in header.tensors:
            block = anatomy_.cut.get(tensor.name)
            ids = None if block is None else kept[block]
            if padding := -end % alignment:
                runs.append(Run(ZEROS, 0, padding))
                end += padding
            infos.append(_info(tensor, ids, end))
            for run in _runs(number, header.data_offset + tensor.offset, tensor, ids):
                runs.append(run)
                end += run.size
    # The last one is padded too, as llama.cpp's own files are.
    if padding := -end % alignment:
        runs.append(Run(ZEROS, 0, padding))
    keys = _keys(source, metadata, anatomy_, kept)
    head = [
        MAGIC, _U32.pack(source.headers[0].version), _U64.pack(len(infos)), _U64.pack(len(keys)),
        *keys, *infos,
    ]  # fmt: skip
    header_bytes = b"".join(head)
    return ShardLayout(header_bytes + bytes(-len(header_bytes) % alignment), tuple(runs))


def _info(tensor: Tensor, ids: tuple[int, ...] | None, offset: int) -> bytes:
    shape = tensor.shape if ids is None else (*tensor.shape[:-1], len(ids))
    name = tensor.name.encode()
    return b"".join((
        _U64.pack(len(name)), name, _U32.pack(len(shape)), *map(_U64.pack, shape),
        _U32.pack(tensor.type), _U64.pack(offset),
    ))  # fmt: skip


def _runs(source: int, start: int, tensor: Tensor, ids: tuple[int, ...] | None) -> Iterator[Run]:
    """Experts that follow each other are one run."""
    if ids is None:
        yield Run(source, start, tensor.size_bytes)
        return
    each = tensor.size_bytes // tensor.shape[-1]
    for _, group in groupby(enumerate(ids), lambda pair: pair[1] - pair[0]):
        together = [one for _, one in group]
        yield Run(source, start + together[0] * each, len(together) * each)


def _keys(source: Source, metadata: Metadata, anatomy_: Anatomy, kept: Selection) -> list[bytes]:
    """Every key-value entry, those of the source first."""
    count = max(len(ids) for ids in kept)
    entries = []
    for key, (start, end) in source.headers[0].spans.items():
        entry = source.keys[start:end]
        if key.startswith("split."):
            continue
        if key == metadata.key("expert_count"):
            entry = _rewritten(key, entry, (count,))
        elif key == metadata.key("expert_used_count"):
            entry = _fewer_used(metadata, key, entry, anatomy_, count)
        entries.append(entry)
    return [
        *entries,
        _entry(shard_mark.FORMAT, GGUFValueType.UINT32, _U32.pack(shard_mark.FORMAT_NOW)),
        _text(shard_mark.SOURCE, source.fingerprint),
        _entry(shard_mark.EXPERTS_ALL, GGUFValueType.UINT32, _U32.pack(anatomy_.experts)),
        _text(shard_mark.KEPT, shard_mark.written(kept)),
    ]


def _fewer_used(metadata: Metadata, key: str, entry: bytes, anatomy_: Anatomy, count: int) -> bytes:
    most = anatomy_.used_of(count)
    if most >= anatomy_.used:
        return entry
    if metadata.key("expert_feed_forward_length") not in metadata.values:
        # src/models/qwen3moe.cpp and others work it out from the number of used experts.
        raise UndividableError(
            f"{metadata.path}: it uses {anatomy_.used} experts for a token, {most} are too few "
            "for a model that does not name its experts' width"
        )
    value = metadata.values[key]
    if isinstance(value, Array):
        assert value.values is not None  # the anatomy read it
        return _rewritten(key, entry, [min(int(one), most) for one in value.values])
    return _rewritten(key, entry, (most,))


def _rewritten(key: str, entry: bytes, numbers: Sequence[int]) -> bytes:
    """The same entry with other numbers of the same type, as many as there were."""
    at = _U64.size + len(key.encode())
    kind = GGUFValueType(_U32.unpack_from(entry, at)[0])
    at += _U32.size
    if kind is GGUFValueType.ARRAY:
        kind = GGUFValueType(_U32.unpack_from(entry, at)[0])
        at += _U32.size + _U64.size
    return entry[:at] + struct.pack(f"<{len(numbers)}{_WHOLE[kind]}", *numbers)


def _entry(key: str, kind: GGUFValueType, value: bytes) -> bytes:
    name = key.encode()
    return _U64.pack(len(name)) + name + _U32.pack(kind) + value


def _text(key: str, value: str) -> bytes:
    raw = value.encode()
    return _entry(key, GGUFValueType.STRING, _U64.pack(len(raw)) + raw)
