"""Counts tiny-moe's experts, and writes and measures shards of it, as many at once as there are
processors; each shard once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.experts.anatomy import Anatomy
from meshd.experts.imatrix import count_experts
from meshd.experts.logits_file import CHUNK_TOKENS, read_header
from meshd.experts.ranking import Ranking, Selection
from meshd.experts.shard_writer import write_shard
from meshd.models.fingerprint import fingerprint
from tools.bench_experts.figures import Chunk, Loss, LostError, chunks_of
from tools.bench_experts.halves import MODEL, Half
from tools.bench_experts.tool import said

# Of each domain: as many as the shortest half has, and a little less.
_RANKED_CHUNKS = 12
_TRIES = 3


@dataclass
class Lab:
    """:ivar counts: by domain."""

    build: EngineBuild
    anatomy: Anatomy
    texts: tuple[Half, ...]
    folder: Path
    counts: Mapping[str, Ranking] = field(default_factory=dict)
    _losses: dict[Selection, asyncio.Task[Loss]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _turns: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(len(os.sched_getaffinity(0)))
    )

    async def prepare(self) -> None:
        """Count, and save the whole model's logits."""
        self.counts = {text.domain: await self._counted(text) for text in self.texts}
        await asyncio.gather(
            *(
                self._run(MODEL, "--file", text.measures, "--kl-divergence-base", self._base(text))
                for text in self.texts
            )
        )

    @property
    def ranking(self) -> Ranking:
        """On all domains alike."""
        return summed(self.counts.values())

    async def loss(self, selection: Selection) -> Loss:
        """Beside the whole model, on the halves that nothing was counted on."""
        whole = self.anatomy.complete(selection)
        if whole not in self._losses:
            self._losses[whole] = asyncio.create_task(self._measured(whole))
        return await self._losses[whole]

    async def losses(self, selections: Iterable[Selection]) -> list[Loss]:
        return await asyncio.gather(*map(self.loss, selections))

    async def write(self, selection: Selection, name: str) -> Path:
        """A shard that stays."""
        target = self.folder / name
        await asyncio.to_thread(
            write_shard, (str(MODEL),), self.anatomy.complete(selection), target,
            progress=lambda done, total: None, stopped=lambda: False,
        )  # fmt: skip
        return target

    @property
    def measured(self) -> int:
        """How many shards were."""
        return len(self._losses)

    async def _counted(self, text: Half) -> Ranking:
        return await count_experts(
            (str(MODEL),),
            (text.ranks,),
            self.folder,
            self.build,
            fingerprint=fingerprint([MODEL]),
            experts=self.anatomy.counted,
            progress=lambda share: None,
            niceness=0,
            chunks=_RANKED_CHUNKS,
        )

    async def _measured(self, selection: Selection) -> Loss:
        async with self._turns:
            shard = await self.write(selection, f"{next(self._numbers)}.gguf")
        try:
            each = await asyncio.gather(*(self._on(shard, text) for text in self.texts))
        finally:
            shard.unlink(missing_ok=True)
        return dict(zip((text.domain for text in self.texts), each, strict=True))

    async def _on(self, shard: Path, text: Half) -> tuple[Chunk, ...]:
        base = self._base(text)
        with base.open("rb") as file:
            chunks = read_header(file.read(64)).chunks
        words = ("--kl-divergence", "--kl-divergence-base", base)
        for _ in range(_TRIES - 1):
            # It may leave its last lines unsaid on a busy machine.
            with contextlib.suppress(LostError):
                return chunks_of(await self._run(shard, *words), chunks)
        return chunks_of(await self._run(shard, *words), chunks)

    def _base(self, text: Half) -> Path:
        return self.folder / f"{text.domain}.logits"

    async def _run(self, model: Path, *words: str | Path) -> str:
        """llama-perplexity on one processor, the same for all. :raises UserError: it failed."""
        batch = str(4 * CHUNK_TOKENS)
        async with self._turns:
            return await said(
                self.build,
                "llama-perplexity",
                *("--model", model, *words, "--threads", "1"),
                *("--ctx-size", str(CHUNK_TOKENS), "--batch-size", batch, "--ubatch-size", batch),
                *("--device", "none", "--gpu-layers", "0", "--no-repack", "--fit", "off"),
                *("--no-warmup", "--offline"),
            )


def summed(rankings: Iterable[Ranking]) -> Ranking:
    """Of as many tokens each."""
    known = tuple(rankings)
    counts = tuple(
        tuple(sum(numbers) for numbers in zip(*layers, strict=True))
        for layers in zip(*(one.counts for one in known), strict=True)
    )
    return replace(known[0], tokens=sum(one.tokens for one in known), counts=counts)
