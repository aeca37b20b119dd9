"""What shards lose, by a real llama-perplexity; and logits that are no base for it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from meshd.engine.build import Binary, EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import Place
from meshd.experts import logits_file
from meshd.experts.logits_file import CHUNK_TOKENS, Header
from meshd.experts.logits_store import LogitsStore
from meshd.experts.perplexity import TOOL, MeasureError, measure, save_logits
from meshd.experts.shard_writer import write_shard
from meshd.quality import Fidelity
from meshd.seeding.store import disk_of

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "share/models/tiny-moe.gguf"
TEXT = REPOSITORY / "share/models/heldout.txt"
OTHER_TEXT = REPOSITORY / "share/calibration/code.measures.txt"
TOKENS = 4 * CHUNK_TOKENS
LAYERS, EXPERTS = 6, 16


@dataclass(frozen=True)
class Base:
    """The whole model's logits on a text."""

    path: Path
    build: EngineBuild

    async def beside(self, model: Path, text: Path = TEXT, **more: Any) -> Fidelity:
        settings: dict[str, Any] = {"progress": ignore, "tokens": TOKENS, "niceness": 0, **more}
        return await measure(
            model, text, settings.pop("logits", self.path), "prose", self.build, **settings
        )


def ignore(_: float) -> None:
    pass


@pytest.fixture(scope="module")
def build(engine: Place) -> EngineBuild:
    return describe(engine)


@pytest.fixture(scope="module")
def base(build: EngineBuild, tmp_path_factory: pytest.TempPathFactory) -> Base:
    path = tmp_path_factory.mktemp("base") / "whole.logits"
    told: list[float] = []
    asyncio.run(
        save_logits(MODEL, TEXT, path, build, progress=told.append, tokens=TOKENS, niceness=0)
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert logits_file.check(path, vocabulary=4096, tokens=TOKENS) == Header(4096, 4)
    assert path.stat().st_size == logits_file.logits_bytes(4096, TOKENS)
    return Base(path, build)


async def test_a_model_beside_itself_loses_nothing(base: Base) -> None:
    told: list[float] = []
    found = await base.beside(MODEL, progress=told.append)
    # Of two that are equally likely after rounding to 16 bits, either may come first.
    assert found.top1 >= 0.998
    assert found.domain == "prose"
    assert found.kl == pytest.approx(0, abs=2e-5)
    assert found.perplexity_ratio == pytest.approx(1, abs=5e-5)
    assert told == sorted(told)
    assert told[-1] == 1.0


async def test_a_pruned_one_loses_the_more_the_fewer_it_keeps_and_always_the_same(
    base: Base, tmp_path: Path
) -> None:
    found = []
    for kept in (12, 6):
        shard = tmp_path / f"{kept}.gguf"
        await asyncio.to_thread(
            write_shard,
            (str(MODEL),),
            (tuple(range(kept)),) * LAYERS,
            shard,
            progress=lambda done, total: None,
            stopped=lambda: False,
        )
        found.append(await base.beside(shard))
        assert await base.beside(shard) == found[-1]
    more, fewer = found
    assert 0.998 > more.top1 > fewer.top1 > 0
    assert 0.001 < more.kl < fewer.kl
    assert 1 < more.perplexity_ratio < fewer.perplexity_ratio


def with_tokens(target: Path, change: Callable[[list[str]], list[str]]) -> Path:
    """The model with another vocabulary: its embedding has as many rows as that has tokens."""
    source = GGUFReader(MODEL)
    writer = GGUFWriter(target, "qwen3moe")
    size = 0
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if field.name == "tokenizer.ggml.tokens":
            value = change(value)
            size = len(value)
        if field.name == "tokenizer.ggml.token_type":
            value = (value + [1] * size)[:size]
        sub = field.types[-1] if kind is GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=sub)
    for tensor in source.tensors:
        data = tensor.data
        if tensor.name == "token_embd.weight":
            data = np.resize(data, (size, data.shape[1]))
        writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


async def test_logits_of_another_vocabulary_are_refused(base: Base, tmp_path: Path) -> None:
    larger = await asyncio.to_thread(
        with_tokens,
        tmp_path / "larger.gguf",
        lambda tokens: [*tokens, *(f"x{i}x" for i in range(8))],
    )
    with pytest.raises(MeasureError, match="vocabulary of 4096 tokens, the model has 4104"):
        await base.beside(larger)
    # As many, and others: it cuts the text into the same pieces, which have other numbers.
    turned = await asyncio.to_thread(
        with_tokens,
        tmp_path / "turned.gguf",
        lambda tokens: [*tokens[:300], *reversed(tokens[300:])],
    )
    with pytest.raises(MeasureError, match="another text, or of a model that cuts this one"):
        await base.beside(turned)


async def test_logits_of_another_text_or_less_of_it_are_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="another text"):
        await base.beside(MODEL, OTHER_TEXT)
    with pytest.raises(MeasureError, match="4 chunks of the text, which has 5"):
        await base.beside(MODEL, tokens=5 * CHUNK_TOKENS)
    with pytest.raises(MeasureError, match="4 chunks, 3 are wanted"):
        await base.beside(MODEL, tokens=3 * CHUNK_TOKENS)
    short = tmp_path / "short.txt"
    short.write_bytes(TEXT.read_bytes()[:2000])
    with pytest.raises(MeasureError, match=r"short\.txt: is too short"):
        await base.beside(MODEL, short)
    with pytest.raises(MeasureError, match=r"short\.txt: is too short"):
        await save_logits(MODEL, short, tmp_path / "x", base.build, progress=ignore)
    assert names(tmp_path) == ["short.txt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "none"])
async def test_damaged_logits_are_refused(base: Base, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.logits"
    data = bytearray(base.path.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    if damage == "flipped":
        data[len(data) // 2] ^= 0x10
    if damage == "none":
        data = bytearray(TEXT.read_bytes())
    if damage != "gone":
        path.write_bytes(data)
    with pytest.raises(MeasureError, match=r"damaged\.logits: "):
        await base.beside(MODEL, logits=path)


async def test_models_that_cannot_be_read(base: Base, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[: 3 << 20])
    with pytest.raises(MeasureError, match=r"broken\.gguf"):
        await base.beside(broken)
    with pytest.raises(MeasureError, match=r"broken\.gguf"):
        await save_logits(broken, TEXT, tmp_path / "x", base.build, progress=ignore)
    with pytest.raises(MeasureError, match=r"gone\.gguf"):
        await save_logits(tmp_path / "gone.gguf", TEXT, tmp_path / "x", base.build, progress=ignore)
    assert names(tmp_path) == ["broken.gguf"]


async def test_engines_without_the_tool_or_with_another_one(base: Base, tmp_path: Path) -> None:
    async def why(script: str) -> str:
        tool = tmp_path / TOOL
        tool.write_text("#!/bin/sh\n" + script)
        tool.chmod(0o755)
        other = replace(base.build, binaries=(Binary(TOOL, str(tool), ""),))
        with pytest.raises(MeasureError) as caught:
            await replace(base, build=other).beside(MODEL)
        return str(caught.value)

    real = base.build.binary(TOOL)
    assert real is not None
    with pytest.raises(MeasureError, match="has no llama-perplexity"):
        await replace(base, build=replace(base.build, binaries=())).beside(MODEL)
    assert "says nothing of use" in await why("exit 0")
    assert "knows no --chunks" in await why(f"{real.path} --help | grep -v -e --chunks")
    passes = f'case "$1" in --help) exec {real.path} --help;; esac\n'
    said = "echo '0.00.1 E disk: it burns' >&2; echo '0.00.2 E so what' >&2; exit 3"
    assert "exit 3: disk: it burns" in await why(passes + said)
    # It cuts the text, and then says something else than was asked for.
    measures = f'case "$*" in *--file*) exec {real.path} "$@";; esac\n'
    assert "0 of 3 chunks" in await why(passes + measures + "echo all is well")
    (tmp_path / TOOL).unlink()
    gone = replace(base.build, binaries=(Binary(TOOL, str(tmp_path / TOOL), ""),))
    with pytest.raises(MeasureError):
        await replace(base, build=gone).beside(MODEL)


@pytest.mark.parametrize(
    ("kind", "number"), [("save", 1), ("save, well under way", 1), ("tokens", 1), ("measure", 2)]
)
async def test_what_is_given_up_leaves_no_child_and_no_file(
    base: Base, tmp_path: Path, kind: str, number: int
) -> None:
    """:param number: of the child that is the last one then."""
    children: list[asyncio.subprocess.Process] = []
    told: list[float] = []
    if kind.startswith("save"):
        work: Coroutine[None, None, object] = save_logits(
            *(MODEL, TEXT, tmp_path / "x.logits", base.build),
            progress=told.append,
            started=children.append,
            tokens=90 * CHUNK_TOKENS,
        )
    else:
        work = base.beside(MODEL, started=children.append)
    running = asyncio.create_task(work)
    async with asyncio.timeout(60):
        while len(children) < number or ("under way" in kind and not told):
            assert not running.done()
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(children) == number
    assert all(child.returncode is not None for child in children)
    assert names(tmp_path) == []


def names(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir()]


async def test_children_of_a_killed_process_die_and_what_they_left_is_swept(
    engine: Place, tmp_path: Path
) -> None:
    store = LogitsStore(tmp_path / "logits", disk_of)
    store.open()
    target = store.path("a" * 16, "b" * 64)
    arguments = [str(MODEL), str(TEXT), str(target), str(80 * CHUNK_TOKENS)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.wire.measure_child", *arguments),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "MESHD_ENGINE_ROOT": str(engine.root)},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert float(await process.stdout.readline()) < 1
        mine = await asyncio.to_thread(commands, str(target.parent))
        assert any(TOOL in line for line in mine.values()), mine
    finally:
        process.kill()
        await process.wait()
    async with asyncio.timeout(30):
        while await asyncio.to_thread(commands, str(target.parent)):
            await asyncio.sleep(0.01)
    (left,) = target.parent.iterdir()
    assert left.name.startswith(f".{target.name}.")
    assert left.stat().st_size < Header(4096, 80).written_bytes
    assert store.all() == {}
    store.open()
    assert list(target.parent.iterdir()) == []


def commands(part: str) -> dict[int, str]:
    """Processes with this in their command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if part in line:
            found[int(folder.name)] = line
    return found
