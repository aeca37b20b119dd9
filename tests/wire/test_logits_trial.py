"""Another node's logits, tried on one chunk by a real llama-perplexity."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import Place
from meshd.experts import logits_file
from meshd.experts.logits_file import CHUNK_TOKENS, SCORED, DifferError, begin_of
from meshd.experts.logits_trial import try_logits
from meshd.experts.perplexity import MeasureError, save_logits
from meshd.experts.shard_writer import write_shard

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "share/models/tiny-moe.gguf"
TEXT = REPOSITORY / "share/models/heldout.txt"
OTHER_TEXT = REPOSITORY / "share/calibration/code.measures.txt"
TOKENS = 4 * CHUNK_TOKENS
COUNTED = 3
LAYERS = 6


class Logits:
    """The whole model's logits, and a shard's that keeps 15 of 16 experts."""

    def __init__(self, folder: Path, build: EngineBuild) -> None:
        self.build = build
        self.whole, self.shard = folder / "whole.logits", folder / "shard.logits"
        self.cut = folder / "shard.gguf"
        write_shard(
            (str(MODEL),),
            (tuple(range(15)),) * LAYERS,
            self.cut,
            progress=lambda done, total: None,
            stopped=lambda: False,
        )
        for model, target in ((MODEL, self.whole), (self.cut, self.shard)):
            asyncio.run(
                save_logits(
                    model, TEXT, target, build, progress=lambda _: None, tokens=TOKENS, niceness=0
                )
            )

    async def tried(
        self, logits: Path, chunk: int = 0, model: Path = MODEL, text: Path = TEXT
    ) -> None:
        def chosen(count: int) -> int:
            assert count == COUNTED
            return chunk

        before = await asyncio.to_thread(lambda: set(logits.parent.iterdir()))
        try:
            await try_logits(
                model, text, logits, self.build, tokens=TOKENS, niceness=0, chosen=chosen
            )
        finally:
            assert await asyncio.to_thread(lambda: set(logits.parent.iterdir())) == before


@pytest.fixture(scope="module")
def logits(engine: Place, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    return Logits(tmp_path_factory.mktemp("logits"), describe(engine))


@pytest.mark.parametrize("chunk", range(COUNTED))
async def test_the_models_own_are_believed_and_a_shards_are_not(logits: Logits, chunk: int) -> None:
    await logits.tried(logits.whole, chunk)
    with pytest.raises(DifferError, match=f"in chunk {chunk} they are not the model's: top-1 0"):
        await logits.tried(logits.shard, chunk)


async def test_one_chunk_of_something_else_is_found_where_it_is_tried(
    logits: Logits, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.logits"
    header, _ = begin_of(logits.whole)
    rows = SCORED * header.row_bytes
    data = bytearray(logits.whole.read_bytes()[: header.written_bytes])
    first = header.begin_bytes + 1 * rows
    data[first : first + rows] = logits.shard.read_bytes()[first : first + rows]
    mixed.write_bytes(data)
    logits_file.seal(mixed, tokens=TOKENS)
    await logits.tried(mixed, 0)
    with pytest.raises(DifferError, match="in chunk 1"):
        await logits.tried(mixed, 1)


async def test_another_texts_are_refused_before_anything_is_computed(logits: Logits) -> None:
    with pytest.raises(DifferError, match="another text"):
        await logits.tried(logits.whole, text=OTHER_TEXT)


async def test_where_it_cannot_be_tried_nobody_is_blamed(logits: Logits, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"gone\.gguf"):
        await logits.tried(logits.whole, model=tmp_path / "gone.gguf")
