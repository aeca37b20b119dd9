"""The header of one GGUF file, read bounded: scalars, small arrays, digests, the tensor table.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Constants and quantisation
sizes are those of the `gguf` package. Its reader is not used: it makes a numpy view for every
element of every array (seconds and hundreds of MB for a vocabulary of 150 000 strings) and
believes the counts that a file claims.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)

from meshd.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)

# Real headers: at most some 20 MB (262 000 tokens, 515 000 merges), 60 keys, 2 000 tensors a file.
HEADER_BYTES_MAX = 48 << 20
KEYS_MAX = 4096
KEY_BYTES_MAX = 1024
STRING_BYTES_MAX = 8 << 20
TENSORS_MAX = 1 << 16
TENSOR_NAME_BYTES_MAX = 63  # GGML_MAX_NAME holds a NUL
DIMENSIONS_MAX = 4  # GGML_MAX_DIMS
STRINGS_IN_ARRAYS_MAX = 3 << 19
NUMBERS_IN_ARRAY_MAX = 2 << 20
VALUES_KEPT_MAX = 4096
ALIGNMENT_MAX = 1 << 16
_READ_BYTES = 1 << 20

_SCALARS: dict[GGUFValueType, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Scalar = int | float | bool | str


class GgufError(UserError):
    """A file that is no usable GGUF; says which, where and why."""


@dataclass(frozen=True, slots=True)
class Array:
    """:ivar values: the elements of a small numeric array; None for strings and long arrays.

    :ivar sha256: of the elements as they lie in the file.
    """

    length: int
    sha256: str
    values: tuple[int | float | bool, ...] | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """:ivar offset: from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """:ivar spans: of each metadata key: first byte of its entry in the file, and the one after."""

    version: int
    metadata: dict[str, Scalar | Array]
    tensors: tuple[Tensor, ...]
    data_offset: int
    file_bytes: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)


class Reader(Protocol):
    def read(self, size: int, /) -> bytes:
        """So many bytes from where the last ended; fewer only where the file ends."""


class _Cursor:
    """Reads forward through a header; every step is checked against the file and the bounds."""

    def __init__(self, file: Reader, path: Path, file_bytes: int) -> None:
        self._file = file
        self._path = path
        self._limit = min(file_bytes, HEADER_BYTES_MAX)
        self._file_bytes = file_bytes
        self.data = bytearray()
        self.at = 0

    def fail(self, cause: str, *, hint: str = "") -> GgufError:
        return GgufError(f"{self._path}: {cause} (at byte {self.at})", hint=hint)

    def need(self, count: int) -> None:
        """Have `count` more bytes in `data`."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self._file_bytes:
            raise self.fail(
                f"the file ends inside its header: {count} bytes wanted, "
                f"{max(0, self._file_bytes - self.at)} left",
                hint="download or copy it again",
            )
        if end > self._limit:
            raise self.fail(f"the header is larger than {HEADER_BYTES_MAX >> 20} MiB")
        missing = end - len(self.data)
        wanted = min(max(missing, _READ_BYTES), self._limit - len(self.data))
        self.data += self._file.read(wanted)
        if end > len(self.data):
            raise self.fail("the file became shorter while it was read")

    def scalar(self, layout: struct.Struct) -> int | float | bool:
        self.need(layout.size)
        value: int | float | bool = layout.unpack_from(self.data, self.at)[0]
        self.at += layout.size
        return value

    def u32(self) -> int:
        return int(self.scalar(_U32))

    def u64(self) -> int:
        return int(self.scalar(_U64))

    def raw(self, what: str, bytes_max: int) -> bytes:
        length = self.u64()
        if length > bytes_max:
            raise self.fail(f"{what} claims {length} bytes, more than the {bytes_max} allowed")
        self.need(length)
        value = bytes(self.data[self.at : self.at + length])
        self.at += length
        return value

    def name(self, what: str, bytes_max: int) -> str:
        value = self.raw(what, bytes_max)
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None
        if not text or not text.isprintable():
            raise self.fail(f"{what} is empty or not printable")
        return text

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings; one Python object each would cost 100 MB on some files."""
        at, end, unpack = self.at, len(self.data), _U64.unpack_from
        for _ in range(count):
            if at + 8 > end:
                self.at = at
                self.need(8)
                end = len(self.data)
            at += 8 + unpack(self.data, at)[0]
            if at > end:
                self.at, wanted = end, at - end
                self.need(wanted)
                end = len(self.data)
        self.at = at


def read_header(path: Path) -> Header:
    """Read the header of one file.

    Reads no tensor data and at most `HEADER_BYTES_MAX` bytes.

    :raises GgufError: the file cannot be read, is no GGUF, is damaged, or is cut short.
    """
    try:
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            return parse_header(file, path, file_bytes)
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}") from error


def parse_header(file: Reader, path: Path, file_bytes: int) -> Header:
    """Likewise of a file that need not lie here; reads forward from its first byte.

    :param path: for messages. :param file_bytes: the size of the whole file.
    :raises GgufError: it is no GGUF, is damaged, or is cut short.
    :raises OSError: it cannot be read.
    """
    return _parse(_Cursor(file, path, file_bytes), file_bytes)


def _parse(cursor: _Cursor, file_bytes: int) -> Header:
    version = _version(cursor)
    tensor_count, key_count = cursor.u64(), cursor.u64()
    if key_count > KEYS_MAX:
        raise cursor.fail(f"claims {key_count} metadata keys, more than the {KEYS_MAX} allowed")
    if tensor_count > TENSORS_MAX:
        raise cursor.fail(f"claims {tensor_count} tensors, more than the {TENSORS_MAX} allowed")
    metadata, spans = _metadata(cursor, key_count)
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if (
        type(alignment) is not int
        or not 0 < alignment <= ALIGNMENT_MAX
        or alignment & (alignment - 1)
    ):
        raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
    tensors = tuple(_tensor(cursor, alignment) for _ in range(tensor_count))
    data_offset = -(-cursor.at // alignment) * alignment
    _check_layout(cursor, tensors, data_offset, file_bytes)
    return Header(version, metadata, tensors, data_offset, file_bytes, spans)


def _version(cursor: _Cursor) -> int:
    cursor.need(4)
    if bytes(cursor.data[:4]) != MAGIC:
        if cursor.data[:7] == b"version":
            raise cursor.fail("is a Git LFS pointer, not a model", hint="git lfs pull")
        raise cursor.fail("is not a GGUF file (wrong magic number)")
    cursor.at = 4
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0 and version:
        raise cursor.fail("is a big-endian GGUF", hint="convert it to little-endian")
    if version == 1:
        raise cursor.fail("is GGUF version 1, which no current engine reads", hint="convert anew")
    raise cursor.fail(f"is GGUF version {version}; known are 2 and 3")


def _metadata(
    cursor: _Cursor, count: int
) -> tuple[dict[str, Scalar | Array], dict[str, tuple[int, int]]]:
    """Values by key, and where each entry lies."""
    metadata: dict[str, Scalar | Array] = {}
    spans: dict[str, tuple[int, int]] = {}
    strings_left = STRINGS_IN_ARRAYS_MAX
    for _ in range(count):
        start = cursor.at
        key = cursor.name("a metadata key", KEY_BYTES_MAX)
        if key in metadata:
            raise cursor.fail(f"metadata key {key} is there twice")
        kind = _value_type(cursor, key)
        if kind is GGUFValueType.STRING:
            metadata[key] = cursor.raw(key, STRING_BYTES_MAX).decode(errors="replace")
        elif kind is GGUFValueType.ARRAY:
            array, strings = _array(cursor, key, strings_left)
            strings_left -= strings
            metadata[key] = array
        else:
            metadata[key] = cursor.scalar(_SCALARS[kind])
        spans[key] = (start, cursor.at)
    return metadata, spans


def _value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    number = cursor.u32()
    try:
        return GGUFValueType(number)
    except ValueError:
        raise cursor.fail(f"{key} has the unknown value type {number}") from None


def _array(cursor: _Cursor, key: str, strings_left: int) -> tuple[Array, int]:
    """Return the array and how many strings it had."""
    kind = _value_type(cursor, key)
    length = cursor.u64()
    if kind is GGUFValueType.ARRAY:
        raise cursor.fail(f"{key} is an array of arrays")
    start = cursor.at
    if kind is GGUFValueType.STRING:
        if length > strings_left:
            raise cursor.fail(f"{key} claims {length} strings, too many")
        cursor.skip_strings(length)
        strings, values = length, None
    else:
        if length > NUMBERS_IN_ARRAY_MAX:
            raise cursor.fail(f"{key} claims {length} numbers, too many")
        size = _SCALARS[kind].size * length
        cursor.need(size)
        strings, values = 0, None
        if length <= VALUES_KEPT_MAX:
            layout = struct.Struct(f"<{length}{_SCALARS[kind].format[1:]}")
            values = layout.unpack_from(cursor.data, start)
        cursor.at += size
    digest = hashlib.sha256(memoryview(cursor.data)[start : cursor.at]).hexdigest()
    return Array(length, digest, values), strings


def _tensor(cursor: _Cursor, alignment: int) -> Tensor:
    name = cursor.name("a tensor name", TENSOR_NAME_BYTES_MAX)
    dimensions = cursor.u32()
    if not 0 < dimensions <= DIMENSIONS_MAX:
        raise cursor.fail(f"tensor {name} claims {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))
    number = cursor.u32()
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise cursor.fail(
            f"tensor {name} has the unknown type {number}", hint="is meshd older than the file?"
        ) from None
    elements = math.prod(shape)
    if not 0 < elements < 1 << 63:
        raise cursor.fail(f"tensor {name} has the impossible shape {list(shape)}")
    if shape[0] % block:
        raise cursor.fail(
            f"tensor {name}: rows of {shape[0]} do not divide into {kind.name} blocks of {block}"
        )
    offset = cursor.u64()
    if offset % alignment:
        raise cursor.fail(f"tensor {name} at offset {offset} is not aligned to {alignment}")
    return Tensor(name, shape, kind, offset, elements // block * block_bytes)


def _check_layout(
    cursor: _Cursor, tensors: tuple[Tensor, ...], data_offset: int, file_bytes: int
) -> None:
    names: set[str] = set()
    end, last = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.name in names:
            raise cursor.fail(f"tensor {tensor.name} is there twice")
        names.add(tensor.name)
        if tensor.offset < end:
            raise cursor.fail(f"tensors {last} and {tensor.name} overlap")
        end, last = tensor.offset + tensor.size_bytes, tensor.name
    missing = data_offset + end - file_bytes
    if tensors and missing > 0:
        raise cursor.fail(
            f"the file is cut short: {missing} bytes are missing", hint="download or copy it again"
        )
