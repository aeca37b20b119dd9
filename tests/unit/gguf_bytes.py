"""GGUF files put together by hand, so that a test can put every part together wrongly."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 4, 5, 6, 7, 8, 9, 10, 12
TYPE_F32, TYPE_F16, TYPE_Q8_0 = 0, 1, 8
ALIGNMENT = 32


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def array(kind: int, elements: list[bytes], *, claimed: int | None = None) -> bytes:
    length = len(elements) if claimed is None else claimed
    return struct.pack("<IQ", kind, length) + b"".join(elements)


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int = TYPE_F32
    offset: int = 0
    dimensions: int | None = None


@dataclass
class Model:
    """The parts of a file; `keys` holds (name, value type, encoded value)."""

    keys: list[tuple[str, int, bytes]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    data_bytes: int | None = None
    cut: int | None = None

    def set(self, key: str, kind: int, value: bytes) -> None:
        self.keys = [entry for entry in self.keys if entry[0] != key] + [(key, kind, value)]

    def drop(self, key: str) -> None:
        self.keys = [entry for entry in self.keys if entry[0] != key]

    def head(self) -> bytes:
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.keys) if self.key_count is None else self.key_count,
        )
        parts = [self.magic, struct.pack("<IQQ", self.version, *counts)]
        for name, kind, value in self.keys:
            parts += [text(name), u32(kind), value]
        for tensor in self.tensors:
            claimed = len(tensor.shape) if tensor.dimensions is None else tensor.dimensions
            parts += [text(tensor.name), u32(claimed)]
            parts += [struct.pack("<Q", size) for size in tensor.shape]
            parts += [u32(tensor.kind), struct.pack("<Q", tensor.offset)]
        return b"".join(parts)

    def write(self, path: Path) -> Path:
        """Write the header, and the data as a hole of `data_bytes` (default: as needed)."""
        head = self.head()
        needed = max(
            (tensor.offset + 4 * _product(tensor.shape) for tensor in self.tensors), default=0
        )
        start = -(-len(head) // ALIGNMENT) * ALIGNMENT
        with path.open("wb") as file:
            file.write(head)
            size = needed if self.data_bytes is None else self.data_bytes
            if size < 1 << 40:
                file.truncate(start + size)
            if self.cut is not None:
                file.truncate(self.cut)
        return path


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def lay_out(model: Model) -> Model:
    """Give the tensors their offsets, one after the other."""
    offset = 0
    for tensor in model.tensors:
        tensor.offset = offset
        offset += -(-4 * _product(tensor.shape) // ALIGNMENT) * ALIGNMENT
    return model


def llama(*, layers: int = 2, width: int = 64, words: int = 40, **numbers: int) -> Model:
    """A small valid model, dense; `numbers` are more keys under ``llama.``."""
    model = Model()
    model.set("general.architecture", STRING, text("llama"))
    model.set("general.name", STRING, text("small"))
    model.set("general.file_type", U32, u32(0))
    given = {
        "block_count": layers,
        "context_length": 256,
        "embedding_length": width,
        "feed_forward_length": 2 * width,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    for name, value in (
        given | {name.replace("__", "."): v for name, v in numbers.items()}
    ).items():
        model.set(f"llama.{name}", U32, u32(value))
    model.set("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5))
    model.set("tokenizer.ggml.model", STRING, text("gpt2"))
    model.set("tokenizer.ggml.pre", STRING, text("default"))
    tokens = [text(f"t{number}") for number in range(words)]
    model.set("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens))
    types = [struct.pack("<i", 1)] * words
    model.set("tokenizer.ggml.token_type", ARRAY, array(I32, types))
    model.set("tokenizer.ggml.merges", ARRAY, array(STRING, [text("t 1")]))
    model.tensors = [
        Tensor("token_embd.weight", (width, words)),
        Tensor("output_norm.weight", (width,)),
    ]
    for layer in range(layers):
        block = f"blk.{layer}"
        model.tensors += [
            Tensor(f"{block}.attn_q.weight", (width, width)),
            Tensor(f"{block}.ffn_up.weight", (width, 2 * width)),
        ]
    return lay_out(model)


Mutation = Callable[[Model, random.Random], bytes | None]


def _any_tensor(model: Model, random_: random.Random) -> Tensor:
    return random_.choice(model.tensors)


def _number_key(model: Model, random_: random.Random) -> str:
    return random_.choice([key for key, kind, _ in model.keys if kind == U32])


def _huge(random_: random.Random) -> int:
    return random_.choice([2**63, 2**64 - 1, 2**40, 2**32, 10**9, 2**31, 70_000])


def truncated(model: Model, random_: random.Random) -> None:
    model.cut = random_.randrange(0, len(model.head()))


def without_data(model: Model, random_: random.Random) -> None:
    model.data_bytes = random_.randrange(0, 64)


def flipped(model: Model, random_: random.Random) -> bytes:
    head = bytearray(model.head())
    for _ in range(random_.randrange(1, 8)):
        head[random_.randrange(len(head))] ^= 1 << random_.randrange(8)
    return bytes(head)


def noise(model: Model, random_: random.Random) -> bytes:
    head = model.head()
    at = random_.randrange(4, len(head))
    return head[:at] + random_.randbytes(random_.randrange(1, 4096))


def shuffled(model: Model, random_: random.Random) -> bytes:
    head = model.head()
    first, second = sorted(random_.randrange(len(head)) for _ in range(2))
    return head[:first] + head[second:] + head[first:second]


def key_count(model: Model, random_: random.Random) -> None:
    model.key_count = random_.choice([_huge(random_), 0, len(model.keys) + 1, 4096])


def tensor_count(model: Model, random_: random.Random) -> None:
    model.tensor_count = random_.choice([_huge(random_), 0, len(model.tensors) + 1, 65536])


def string_length(model: Model, random_: random.Random) -> None:
    model.set("general.name", STRING, struct.pack("<Q", _huge(random_)) + b"short")


def backed_string(model: Model, random_: random.Random) -> bytes:
    # The claim is true: the file has that many bytes, all zero.
    model.set("general.name", STRING, struct.pack("<Q", random_.choice([7 << 20, 9 << 20])))
    model.data_bytes = 100 << 20
    return model.head()


def array_length(model: Model, random_: random.Random) -> None:
    kind = random_.choice([STRING, I32, U64, BOOL, F64])
    model.set("tokenizer.ggml.tokens", ARRAY, array(kind, [text("a")], claimed=_huge(random_)))


def backed_array(model: Model, random_: random.Random) -> bytes:
    kind, length = random_.choice(
        [(STRING, 1_500_000), (STRING, 8 << 20), (U64, 2_000_000), (F32, 9)]
    )
    model.set("tokenizer.ggml.scores", ARRAY, array(kind, [], claimed=length))
    model.data_bytes = 100 << 20
    return model.head()


def nested_array(model: Model, random_: random.Random) -> None:
    value = array(I32, [struct.pack("<i", 1)])
    for _ in range(random_.choice([1, 2, 900])):
        value = array(ARRAY, [value])
    model.set("tokenizer.ggml.scores", ARRAY, value)


def value_type(model: Model, random_: random.Random) -> None:
    place = random_.randrange(len(model.keys))
    name, _, value = model.keys[place]
    model.keys[place] = (name, random_.choice([0, 1, 4, 6, 7, 8, 9, 12, 13, 255, 2**32 - 1]), value)


def wrong_number(model: Model, random_: random.Random) -> None:
    name = _number_key(model, random_)
    kind, layout, value = random_.choice(
        [
            (I32, "<i", -1),
            (I32, "<i", -(2**31)),
            (U32, "<I", 0),
            (U32, "<I", 2**32 - 1),
            (U64, "<Q", 2**64 - 1),
            (F32, "<f", float("nan")),
            (F64, "<d", float("inf")),
            (BOOL, "<?", True),
        ]
    )
    model.set(name, kind, struct.pack(layout, value))


def text_for_number(model: Model, random_: random.Random) -> None:
    model.set(_number_key(model, random_), STRING, text("many"))


def array_for_number(model: Model, random_: random.Random) -> None:
    elements = [u32(random_.randrange(9))] * random_.randrange(4)
    model.set(_number_key(model, random_), ARRAY, array(U32, elements))


def missing_key(model: Model, random_: random.Random) -> None:
    model.drop(random_.choice(model.keys)[0])


def double_key(model: Model, random_: random.Random) -> None:
    model.keys.append(random_.choice(model.keys))


def bad_name(model: Model, random_: random.Random) -> None:
    name = random_.choice(["", "\n\x1b[2J", "x" * 5000, "a\0b", "../../etc"])
    if random_.random() < 0.5:
        model.keys.append((name, U32, u32(1)))
    else:
        _any_tensor(model, random_).name = name


def layer_count(model: Model, random_: random.Random) -> None:
    count = random_.choice([0, 1, 3, 513, 2**31 - 1, 2**32 - 1])
    model.set("llama.block_count", U32, u32(count))


def layer_number(model: Model, random_: random.Random) -> None:
    _any_tensor(model, random_).name = f"blk.{random_.choice([2, 7, 512, 9999])}.ffn_up.weight"


def overlap(model: Model, random_: random.Random) -> None:
    _any_tensor(model, random_).offset = random_.choice([0, 32, 33, 1, 2**63, 2**64 - 32])


def cycle(model: Model, random_: random.Random) -> None:
    offsets = [tensor.offset for tensor in model.tensors]
    for tensor, offset in zip(model.tensors, offsets[1:] + offsets[:1], strict=True):
        tensor.offset = offset


def shape(model: Model, random_: random.Random) -> None:
    tensor = _any_tensor(model, random_)
    tensor.shape = random_.choice(
        [(0,), (2**63,), (2**32, 2**32), (1, 1, 1, 1, 1), (), (2**64 - 1,) * 4, (3,)]
    )


def dimensions(model: Model, random_: random.Random) -> None:
    _any_tensor(model, random_).dimensions = random_.choice([0, 5, 255, 2**32 - 1])


def tensor_type(model: Model, random_: random.Random) -> None:
    _any_tensor(model, random_).kind = random_.choice([4, 5, 39, 99, 2**31, 2**32 - 1])


def double_tensor(model: Model, random_: random.Random) -> None:
    model.tensors.append(deepcopy(_any_tensor(model, random_)))


def version(model: Model, random_: random.Random) -> None:
    model.version = random_.choice([0, 1, 4, 0x03000000, 2**32 - 1])


def magic(model: Model, random_: random.Random) -> None:
    model.magic = random_.choice([b"FUGG", b"GGML", b"\0\0\0\0", b"PK\3\4", b"<htm"])


def alignment(model: Model, random_: random.Random) -> None:
    model.set("general.alignment", U32, u32(random_.choice([0, 3, 2**31, 2**32 - 1, 1 << 20])))


def split(model: Model, random_: random.Random) -> None:
    model.set("split.count", U32, u32(random_.choice([2, 2**31])))


MUTATIONS: tuple[Mutation, ...] = (
    truncated, without_data, flipped, noise, shuffled, key_count, tensor_count, string_length,
    backed_string, array_length, backed_array, nested_array, value_type, wrong_number,
    text_for_number, array_for_number, missing_key, double_key, bad_name, layer_count,
    layer_number, overlap, cycle, shape, dimensions, tensor_type, double_tensor, version, magic,
    alignment, split,
)  # fmt: skip


def mutant(number: int, path: Path) -> str:
    """Write the mutant of that number; the same number always gives the same file."""
    random_ = random.Random(number)
    mutation = MUTATIONS[number % len(MUTATIONS)]
    model = llama()
    raw = mutation(model, random_)
    if raw is None:
        model.write(path)
    else:
        with path.open("wb") as file:
            file.write(raw)
            file.truncate(max(len(raw), len(raw) + (model.data_bytes or 200_000)))
    return mutation.__name__
