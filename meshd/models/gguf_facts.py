"""From the headers of a model's files to its facts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gguf.constants import LlamaFileType, PoolingType

from meshd.experts.anatomy import UndividableError, anatomy
from meshd.models import layer_patterns
from meshd.models.facts import GgufFacts, LayerFacts
from meshd.models.gguf_header import Array, GgufError, Header, Tensor, read_header
from meshd.models.metadata import LAYERS_MAX, Metadata

SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
SPLITS_MAX = 512
_BLOCK = re.compile(r"blk\.(\d{1,4})\.")
_EXPERTS = re.compile(r"\.ffn_(gate|up|down|gate_up)_(ch)?exps")  # what --n-cpu-moe moves
# The rest of what has one row or value an expert: experts/anatomy.py.
_ROUTER = re.compile(r"\.(ffn_gate_inp\.(weight|bias)|exp_probs_b(_vl)?(\.(bias|weight))?)$")
# LLM_TENSOR_LAYER_INPUT in llama-arch.cpp: looked up, not multiplied, so kept on the host.
_INPUT = re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd)\.")
_TOKENIZER = ("tokens", "token_type", "merges", "pre", "model")


def read_facts(path: Path) -> GgufFacts:
    """Read what the headers of a model say; of a split, every part's (any part may be named).

    :raises GgufError: a file is missing, damaged, or lacks what an engine needs.
    """
    files, headers = read_headers(path)
    first = headers[0]
    architecture = first.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not re.fullmatch(r"[\w.-]{1,64}", architecture):
        raise GgufError(f"{files[0]}: general.architecture is missing or no name")
    metadata = Metadata(files[0], first.metadata, architecture)
    tensors = [tensor for header in headers for tensor in header.tensors]
    return _facts(
        metadata,
        tensors,
        files=tuple(str(file) for file in files),
        file_bytes=sum(header.file_bytes for header in headers),
    )


def read_headers(path: Path) -> tuple[tuple[Path, ...], list[Header]]:
    """Every part of a model and its header.

    :raises GgufError: one is missing, damaged, or does not belong to the others.
    """
    files = split_files(path)
    headers = [read_header(file) for file in files]
    _check_split(files, headers)
    names = [tensor.name for header in headers for tensor in header.tensors]
    if len(set(names)) != len(names):
        raise GgufError(f"{files[0]}: two parts hold the same tensor")
    return files, headers


def split_files(path: Path) -> tuple[Path, ...]:
    """All parts of a split in order, or the one file, absolute.

    :raises GgufError: a part is missing.
    """
    path = path.absolute()
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 0 < int(match["part"]) <= count <= SPLITS_MAX:
        raise GgufError(f"{path}: its name claims part {match['part']} of {count}")
    files = tuple(
        path.with_name(f"{match['stem']}-{part:05}-of-{count:05}.gguf")
        for part in range(1, count + 1)
    )
    missing = [file.name for file in files if not file.exists()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise GgufError(
            f"{path}: {len(missing)} of {count} parts are missing: {shown}",
            hint=f"put them into {path.parent}",
        )
    return files


def _check_split(files: tuple[Path, ...], headers: list[Header]) -> None:
    declared = headers[0].metadata.get("split.count", 0)
    if declared and declared != len(files):
        raise GgufError(
            f"{files[0]}: is part of a split of {declared} files, but its name does not say so",
            hint="keep the names NAME-00001-of-0000N.gguf",
        )
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        if len(files) > 1 and header.metadata.get("split.no", number) != number:
            raise GgufError(
                f"{file}: says that it is part {header.metadata['split.no']} (from 0), "
                f"its name {number}"
            )
    total = headers[0].metadata.get("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if len(files) > 1 and total is not None and total != found:
        raise GgufError(f"{files[0]}: the split should hold {total} tensors, its parts {found}")


@dataclass(slots=True)
class _Sizes:
    """Bytes by place, summed from the tensor table."""

    layer: dict[int, int] = field(default_factory=dict)
    experts: dict[int, int] = field(default_factory=dict)
    routers: dict[int, int] = field(default_factory=dict)
    largest: dict[int, int] = field(default_factory=dict)
    largest_dense: dict[int, int] = field(default_factory=dict)
    expert_elements: int = 0
    input: int = 0
    output: int = 0
    other: int = 0
    embedding: int = 0


def _sizes(tensors: Iterable[Tensor]) -> _Sizes:
    sizes = _Sizes()
    for tensor in tensors:
        block = _BLOCK.match(tensor.name)
        if block is not None:
            number = int(block[1])
            sizes.layer[number] = sizes.layer.get(number, 0) + tensor.size_bytes
            sizes.largest[number] = max(sizes.largest.get(number, 0), tensor.size_bytes)
            if _EXPERTS.search(tensor.name):
                sizes.experts[number] = sizes.experts.get(number, 0) + tensor.size_bytes
                sizes.expert_elements += tensor.elements
            elif _ROUTER.search(tensor.name):
                sizes.routers[number] = sizes.routers.get(number, 0) + tensor.size_bytes
                sizes.expert_elements += tensor.elements
            else:
                sizes.largest_dense[number] = max(
                    sizes.largest_dense.get(number, 0), tensor.size_bytes
                )
        elif _INPUT.match(tensor.name):
            sizes.input += tensor.size_bytes
            if tensor.name == "token_embd.weight":
                sizes.embedding = tensor.size_bytes
        elif tensor.name == "output.weight":
            sizes.output = tensor.size_bytes
        else:
            sizes.other += tensor.size_bytes
    return sizes


def _facts(
    metadata: Metadata, tensors: list[Tensor], *, files: tuple[str, ...], file_bytes: int
) -> GgufFacts:
    mmproj = metadata.architecture == "clip"
    sizes = _sizes(tensors)
    embedding_length = 0 if mmproj else metadata.number("embedding_length")
    layers = () if mmproj else _layers(metadata, sizes, embedding_length)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    tokens = metadata.values.get("tokenizer.ggml.tokens")
    heads = max((layer.heads for layer in layers), default=0)
    key_length, value_length = _lengths(metadata, embedding_length, heads)
    vocabulary_size = (
        tokens.length
        if isinstance(tokens, Array)
        else metadata.number("vocab_size", shapes.get("token_embd.weight", (0, 0))[-1])
    )
    tied = "output.weight" not in shapes
    pooling = metadata.number("pooling_type", 0)
    groups, undividable = (0, "") if mmproj else _expert_groups(metadata, tensors)
    return GgufFacts(
        files=files,
        file_bytes=file_bytes,
        architecture=metadata.architecture,
        name=metadata.text("general.name", Path(files[0]).stem),
        quantisation=_quantisation(metadata, tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        layers=layers,
        embedding_length=embedding_length,
        heads=heads,
        key_length=key_length,
        value_length=value_length,
        context_train=0 if mmproj else metadata.number("context_length"),
        vocabulary_size=vocabulary_size,
        vocabulary_sha256=_vocabulary_sha256(metadata),
        embedding_bytes=sizes.input,
        output_bytes=_output_bytes(metadata, sizes),
        tied_embeddings=tied,
        other_bytes=sizes.other,
        sliding_window=0 if mmproj else layer_patterns.sliding(metadata, len(layers))[0],
        experts=metadata.number("expert_count", 0),
        experts_used=max(metadata.per_layer("expert_used_count", len(layers), 0), default=0),
        chat_template=bool(metadata.text("tokenizer.chat_template")),
        pooling=PoolingType(pooling).name.lower() if pooling in (1, 2, 3, 4) else None,
        mmproj=mmproj,
        expert_feed_forward=max(
            metadata.per_layer("expert_feed_forward_length", len(layers), 0), default=0
        ),
        mla_key_length=_mla_key_length(metadata),
        tools=_tools(metadata),
        expert_groups=groups,
        undividable=undividable,
        expert_parameters=sizes.expert_elements,
        expert_groups_used=metadata.number("expert_group_used_count", 0) if groups else 0,
    )


def _expert_groups(metadata: Metadata, tensors: list[Tensor]) -> tuple[int, str]:
    """How many, and why no shard can be made of the experts."""
    try:
        found = anatomy(metadata, tensors)
    except UndividableError as error:
        return 0, error.message
    return (found.groups if found else 0), ""


def _tools(metadata: Metadata) -> bool:
    """Jinja templates are given `tools`; some models carry another template for them."""
    return bool(metadata.text("tokenizer.chat_template.tool_use")) or bool(
        re.search(r"\btools\b", metadata.text("tokenizer.chat_template"))
    )


def _output_bytes(metadata: Metadata, sizes: _Sizes) -> int:
    if sizes.output or metadata.architecture in layer_patterns.ENCODERS:
        return sizes.output
    return sizes.embedding


def _mla_key_length(metadata: Metadata) -> int:
    return metadata.number("attention.key_length_mla", 0)


def _lengths(metadata: Metadata, embedding: int, heads: int) -> tuple[int, int]:
    default = embedding // heads if heads else 0
    return (
        metadata.number("attention.key_length", default),
        metadata.number("attention.value_length", default),
    )


def _layers(metadata: Metadata, sizes: _Sizes, embedding: int) -> tuple[LayerFacts, ...]:
    count = metadata.number("block_count")
    if not 0 < count <= LAYERS_MAX:
        raise metadata.fail(metadata.key("block_count"), f"is {count}, not 1 to {LAYERS_MAX}")
    beyond = [number for number in sizes.layer if number >= count]
    if beyond:
        raise metadata.fail(
            metadata.key("block_count"), f"is {count}, but there is blk.{beyond[0]}"
        )
    missing = [number for number in range(count) if number not in sizes.layer]
    if missing:
        raise metadata.fail(f"blk.{missing[0]}", f"has no tensors, of {count} blocks")
    heads = metadata.per_layer("attention.head_count", count, 0)
    kv_heads = metadata.per_layer("attention.head_count_kv", count, heads[0])
    if metadata.key("attention.head_count_kv") not in metadata.values:
        kv_heads = heads
    feed_forward = metadata.per_layer("feed_forward_length", count, 0)
    _, slides = layer_patterns.sliding(metadata, count)
    recurs = layer_patterns.recurrent(metadata, kv_heads, feed_forward)
    # Upstream takes the default head size from layer 0, also where that one has no heads.
    key_length, value_length = _lengths(metadata, embedding, heads[0])
    key_swa = metadata.number("attention.key_length_swa", key_length)
    value_swa = metadata.number("attention.value_length_swa", value_length)
    state = 4 * layer_patterns.state_elements(metadata, embedding, heads[0], key_length)
    predicting = metadata.number("nextn_predict_layers", 0)
    mla = _mla_key_length(metadata) > 0
    layers = []
    for number in range(count):
        prediction = number >= count - predicting
        recurrent = recurs[number] and not prediction
        cached = not prediction and layer_patterns.attends(
            metadata, number, recurrent, feed_forward[number]
        )
        kv = kv_heads[number] if cached else 0
        key, value = (key_swa, value_swa) if slides[number] else (key_length, value_length)
        layers.append(
            LayerFacts(
                weight_bytes=sizes.layer[number],
                expert_bytes=sizes.experts.get(number, 0),
                kv_heads=kv,
                sliding=slides[number] and not prediction,
                recurrent_bytes=state if recurrent else 0,
                key_elements=kv * key,
                value_elements=0 if mla else kv * value,
                prediction=prediction,
                heads=heads[number],
                feed_forward=feed_forward[number],
                largest_tensor_bytes=sizes.largest[number],
                largest_dense_bytes=sizes.largest_dense.get(number, 0),
                router_bytes=sizes.routers.get(number, 0),
            )
        )
    return tuple(layers)


def _quantisation(metadata: Metadata, tensors: list[Tensor]) -> str:
    """As people write it: ``Q4_K_M``; without general.file_type the type most bytes have."""
    number = metadata.values.get("general.file_type")
    if isinstance(number, int):
        try:
            return LlamaFileType(number & ~1024).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            pass
    totals: dict[str, int] = {}
    for tensor in tensors:
        totals[tensor.type.name] = totals.get(tensor.type.name, 0) + tensor.size_bytes
    return max(totals, key=totals.__getitem__, default="unknown")


def _vocabulary_sha256(metadata: Metadata) -> str:
    """Identity of the tokenizer: its model, pre-tokenizer, tokens, their types and merges."""
    if "tokenizer.ggml.model" not in metadata.values:
        return ""
    digest = hashlib.sha256()
    for name in _TOKENIZER:
        value = metadata.values.get(f"tokenizer.ggml.{name}")
        shown = value.sha256 if isinstance(value, Array) else repr(value)
        digest.update(f"{name}={shown}\n".encode())
    return digest.hexdigest()
