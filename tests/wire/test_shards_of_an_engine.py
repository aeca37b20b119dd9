"""Files of shards as a stock engine takes them, and their writer killed, or out of room."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from meshd.engine.locate import SERVER, Place
from meshd.errors import UserError
from meshd.experts.anatomy import Anatomy, anatomy
from meshd.experts.ranking import Selection
from meshd.experts.shard_layout import Source, shard_layout
from meshd.experts.shard_writer import Written, partial_files, write_shard
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_headers
from meshd.models.metadata import Metadata
from meshd.planner.kv import ContextSettings
from tests.wire import shard_child
from tests.wire.llama_harness import llama
from tools.memory_table.models import MODELS
from tools.memory_table.oracle import fit_params
from tools.memory_table.sparse import Shape, write

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "share/models/tiny-moe.gguf"
ALL: Selection = (tuple(range(16)),) * 6
TEN: Selection = tuple(
    tuple(sorted((3 * one + block) % 16 for one in range(10))) for block in range(6)
)
PROMPT = "The default value of the option is"
ONE = ContextSettings(4096, 1, op_offload=False)


def cut(files: Sequence[Path], selection: Selection, target: Path) -> Written:
    names = tuple(str(file) for file in files)
    return write_shard(
        names, selection, target, progress=lambda done, total: None, stopped=lambda: False
    )


def said(engine: Place, *words: str | Path) -> str:
    """What a program of the engine writes; the first word names it."""
    server = engine.binary(SERVER)
    assert server is not None
    program = server.with_name(str(words[0]))
    if not program.exists():
        pytest.skip(f"this engine has no {words[0]}")
    done = subprocess.run(
        [program, *words[1:]], capture_output=True, text=True, errors="replace", timeout=120,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


async def greedy(engine: Place, model: Path, tokens: int = 64) -> str:
    """By llama-server: llama-completion loses the end of what it says one time in thirty."""
    server = engine.binary(SERVER)
    assert server is not None
    body = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0, "ignore_eos": True}
    options = ("--model", str(model), "--ctx-size", "1024", "--device", "none")
    with tempfile.TemporaryDirectory() as folder:
        async with llama(server, Path(folder) / "engine.sock", options) as running:
            answer = json.loads(await running.post("/completion", json.dumps(body).encode()))
    assert answer["tokens_predicted"] == tokens
    return str(answer["content"])


_WHOLE: list[str] = []


@pytest.fixture
async def whole(engine: Place) -> str:
    """What the whole model says."""
    if not _WHOLE:
        _WHOLE.append(await greedy(engine, MODEL))
    return _WHOLE[0]


async def test_with_all_experts_it_says_the_same(engine: Place, whole: str, tmp_path: Path) -> None:
    assert len(whole) > 100
    assert await greedy(engine, cut([MODEL], ALL, tmp_path / "all.gguf").path) == whole


async def test_from_a_split_file_too(engine: Place, whole: str, tmp_path: Path) -> None:
    said(engine, "llama-gguf-split", "--split-max-size", "8M", MODEL, tmp_path / "cut")
    parts = [tmp_path / f"cut-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    shard = cut(parts, ALL, tmp_path / "all.gguf").path
    assert await greedy(engine, shard) == whole
    straight = cut([MODEL], ALL, tmp_path / "straight.gguf").path
    assert {one.name: one.data.tobytes() for one in GGUFReader(shard).tensors} == {
        one.name: one.data.tobytes() for one in GGUFReader(straight).tensors
    }


async def test_ten_of_sixteen_say_something_else(engine: Place, whole: str, tmp_path: Path) -> None:
    shard = cut([MODEL], TEN, tmp_path / "ten.gguf")
    assert shard.size_bytes < 0.75 * MODEL.stat().st_size
    text = await greedy(engine, shard.path)
    assert text != whole
    assert await greedy(engine, shard.path) == text


async def test_fewer_than_the_model_uses(engine: Place, tmp_path: Path) -> None:
    """Two experts of sixteen are the least, and all of them used."""
    assert await greedy(engine, cut([MODEL], ((3, 9),) * 6, tmp_path / "two.gguf").path, 8)


@pytest.mark.parametrize(
    "kind",
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K",
     "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE", "BF16", "F16"],
)  # fmt: skip
async def test_every_file_type_of_llama_quantize(kind: str, engine: Place, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    said(engine, "llama-quantize", "--allow-requantize", MODEL, model, kind, "1")
    before = {one.name: one for one in GGUFReader(model).tensors}
    shard = cut([model], TEN, tmp_path / "ten.gguf").path
    for one in GGUFReader(shard).tensors:
        data = before[one.name].data
        if "_exps." in one.name or "gate_inp" in one.name:
            data = data[list(TEN[int(one.name.split(".")[1])])]
        assert one.tensor_type == before[one.name].tensor_type
        assert one.data.tobytes() == data.tobytes(), one.name
    assert await greedy(engine, shard, 8)
    everything = cut([model], ALL, tmp_path / "all.gguf").path
    assert await greedy(engine, everything, 16) == await greedy(engine, model, 16)


def _shapes() -> Iterator[Shape]:
    for shape in MODELS:
        if shape.experts:
            # The engine tells DeepSeek's lite models by their number of layers.
            layers = shape.layers if "lite" in shape.name else 4
            yield replace(shape, layers=layers, vocabulary=2048)
    grouped = next(one for one in MODELS if one.name == "deepseek-v3")
    groups = {"expert_group_count": 8, "expert_group_used_count": 4}
    yield replace(
        grouped, name="deepseek-v3-grouped", layers=4, vocabulary=2048,
        metadata=grouped.metadata | groups,
    )  # fmt: skip


def hollow(source: Path, selection: Selection, target: Path) -> Path:
    """The shard's true header, then a hole: all that a planner asks an engine about."""
    files, headers = read_headers(source)
    with source.open("rb") as file:
        head = file.read(headers[0].data_offset)
    layout = shard_layout(Source(source, headers, head, fingerprint(files)), selection)
    target.write_bytes(layout.header)
    os.truncate(target, layout.size_bytes)
    return target


def first_of_each_group(found: Anatomy, kept: int) -> Selection:
    size, each = found.experts // found.step, kept // found.step
    ids = tuple(group * size + one for group in range(found.step) for one in range(each))
    return tuple(ids if count else () for count in found.counted)


@pytest.mark.parametrize("shape", list(_shapes()), ids=lambda shape: shape.name)
def test_the_engine_takes_shards_of_published_models(
    shape: Shape, engine: Place, tmp_path: Path
) -> None:
    """Every tensor has the shape that the engine's code for this architecture asks for."""
    source = write(shape, tmp_path)
    _, (header,) = read_headers(source)
    found = anatomy(Metadata(source, header.metadata, shape.architecture), header.tensors)
    assert found is not None
    (of_model,) = fit_params(engine, source, ONE, ["--device", "none"])
    previous = of_model.weights_bytes
    for kept in (found.experts // 2, found.least):
        shard = hollow(source, first_of_each_group(found, kept), tmp_path / "shard.gguf")
        (of_shard,) = fit_params(engine, shard, ONE, ["--device", "none"])
        assert of_shard.kv_bytes == of_model.kv_bytes
        assert of_shard.weights_bytes < previous
        previous = of_shard.weights_bytes


def child(target: Path, share: float, files: Sequence[Path]) -> subprocess.Popen[str]:
    kept = ";".join(",".join(str(one) for one in ids) for ids in TEN)
    command = [sys.executable, "-m", "tests.wire.shard_child", target, kept, str(share), *files]
    return subprocess.Popen(
        [str(word) for word in command], cwd=REPOSITORY, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_killed_in_the_middle_it_goes_on(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = cut([MODEL], TEN, tmp_path / "straight.gguf")
    target = tmp_path / "ten.gguf"
    with child(target, share, [MODEL]) as process:
        assert process.stdout is not None
        done = int(process.stdout.readline())
        # While it lives nobody else writes the same.
        with pytest.raises(UserError, match="another process writes it"):
            cut([MODEL], TEN, target)
        process.kill()
        assert process.wait(20) == -9
    assert not target.exists()
    assert partial_files(target)[0].exists()

    monkeypatch.setattr(
        "meshd.experts.shard_writer._CHECKPOINT_BYTES", shard_child.CHECKPOINT_BYTES
    )
    monkeypatch.setattr("meshd.experts.shard_writer._BLOCK_BYTES", shard_child.BLOCK_BYTES)
    written = 0
    real = os.sendfile

    def counted(output: int, source: int, start: int, size: int) -> int:
        nonlocal written
        count = real(output, source, start, size)
        written += count
        return count

    monkeypatch.setattr(os, "sendfile", counted)
    again = cut([MODEL], TEN, target)
    assert again.sha256 == straight.sha256
    assert hashlib.sha256(target.read_bytes()).hexdigest() == straight.sha256
    # Of two checkpoints one may not have been synced when it was killed.
    lost = 2 * shard_child.CHECKPOINT_BYTES + shard_child.BLOCK_BYTES
    assert written <= straight.size_bytes - done + lost
    assert not any(one.exists() for one in partial_files(target))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=70m", "none", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_is_refused_before_anything_is_written(small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"small: a shard needs 0\.01 GB more there") as caught:
        cut([MODEL], TEN, small_disk / "ten.gguf")
    assert caught.value.hint
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_meanwhile(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.experts.shard_writer._STAYS_FREE_BYTES", 0)
    names = (str(MODEL),)
    other = small_disk / "other"

    def fill(done: int, total: int) -> None:
        if not other.exists():
            other.write_bytes(bytes((70 << 20) - done - (2 << 20)))

    monkeypatch.setattr("meshd.experts.shard_writer._BLOCK_BYTES", 1 << 18)
    with pytest.raises(UserError, match=r"no room for a shard of 0\.01 GB"):
        write_shard(names, TEN, small_disk / "ten.gguf", progress=fill, stopped=lambda: False)
    assert [one.name for one in small_disk.iterdir()] == ["other"]
    other.unlink()
    assert cut([MODEL], TEN, small_disk / "ten.gguf").size_bytes > 0
