"""Counting on calibration texts which experts a model's routers choose.

llama-imatrix can save what it has at intervals, but not resume: such a file holds some layers
counted to other tokens than the rest (and to fewer than its own chunk count says). So texts are
counted in pieces of a few thousand tokens, each by a run of its own that is whole or nothing. The
weights are pages of the file, which a next run finds where the last one left them.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.experts.counting import Counting, Counts, Piece
from meshd.experts.imatrix_file import read_counts
from meshd.experts.imatrix_run import CHUNK_TOKENS, SILENCE_S, Program, Span, program
from meshd.experts.ranking import Ranking, RankingError
from meshd.experts.ranking_file import checked
from meshd.experts.texts import digest_of
from meshd.experts.tool_child import Started, ignored

# 16 384 tokens of each text: how much the order gains by more is in docs/experts.md.
TEXT_CHUNKS = 32
PIECE_CHUNKS = 8
_OUTPUT = "imatrix.gguf"


async def count_experts(
    files: tuple[str, ...],
    texts: tuple[Path, ...],
    folder: Path,
    build: EngineBuild,
    *,
    fingerprint: str,
    experts: tuple[int, ...],
    progress: Callable[[float], None],
    started: Started = ignored,
    niceness: int = 19,
    chunks: int = TEXT_CHUNKS,
    silence_s: float = SILENCE_S,
) -> Ranking:
    """Count on the processor, with weights as they lie in the model's file.

    All texts weigh the same: of each as many tokens are counted as the shortest has, at most 512
    times ``chunks``. Counts are then plain numbers of choices, and their sum can be checked.

    Cancelling it ends the child; what was counted lies in ``folder``, and the next call for the
    same model and texts goes on there.

    :param files: of the model, in order.
    :param folder: with room for what llama-imatrix writes, about 0.01 times the model's size; no
        second count at a time.
    :param experts: routed experts of each of the model's blocks, 0 of one without, and of one that
        ordinary decoding does not run (multi-token prediction).
    :param progress: called with 0 to 1, rising. :param started: told of each child.
    :param niceness: added to our own: what serves has the processors.
    :param silence_s: after which a child that says nothing is given up.
    :raises RankingError: nothing was counted, or what cannot be; the message says why.
    """
    if not texts:
        raise RankingError("there is no text to count experts on")
    try:
        calibration = await asyncio.to_thread(digest_of, texts)
        key = hashlib.sha256(f"{fingerprint} {calibration} {experts}".encode()).hexdigest()[:16]
        work = _Work(
            files[0],
            texts,
            folder / f".imatrix-{key}",
            await program(build, niceness=niceness, silence_s=silence_s, started=started),
            await asyncio.to_thread(Counting, folder, key, experts),
            experts,
            _Rising(progress, len(texts) * chunks),
        )
        pieces = await work.all(chunks)
        if await asyncio.to_thread(digest_of, texts) != calibration:
            raise RankingError("a text changed while experts were counted on it")
    except OSError as error:
        raise RankingError(f"experts cannot be counted: {error}") from error
    tokens = CHUNK_TOKENS * sum(piece.chunks for piece in pieces)
    ranking = Ranking(fingerprint, calibration, tokens, _sum([one.counts for one in pieces]))
    ranking = checked(ranking, fingerprint=fingerprint, experts=experts)
    progress(1.0)
    return ranking


class _Rising:
    """Progress over all pieces, which never falls back when one is counted anew."""

    def __init__(self, progress: Callable[[float], None], chunks: int) -> None:
        self._progress = progress
        self._chunks = chunks
        self._said = 0.0

    def __call__(self, chunks: float) -> None:
        share = min(1.0, chunks / self._chunks)
        if share > self._said:
            self._said = share
            self._progress(share)


@dataclass
class _Work:
    """Counts the texts in turn, so that each has given equally much whenever it ends."""

    model: str
    texts: tuple[Path, ...]
    scratch: Path
    program: Program
    counting: Counting
    experts: tuple[int, ...]
    says: Callable[[float], None]

    async def all(self, chunks: int) -> list[Piece]:
        """:raises RankingError: some text gives nothing at all."""
        found: list[Piece] = []
        for first in range(0, chunks, PIECE_CHUNKS):
            wanted = min(PIECE_CHUNKS, chunks - first)
            row = await self._row(first, wanted, sum(piece.chunks for piece in found))
            found += row
            if not row or row[0].chunks < wanted:
                break
        return found

    async def _row(self, first: int, wanted: int, done: int) -> list[Piece]:
        """A piece of each text, all as long as the shortest is; none when one has ended.

        :param done: chunks before.
        """
        row: dict[int, Piece] = {}
        while len(row) < len(self.texts):
            text = next(one for one in range(len(self.texts)) if one not in row)
            piece = await self._piece(Span(text, first, wanted), done + len(row) * wanted)
            if not piece.chunks:
                if first:
                    return []
                raise RankingError(
                    f"{self.texts[text]}: fewer than the {2 * CHUNK_TOKENS} tokens of this model "
                    "that experts are counted on at least"
                )
            if piece.chunks < wanted:
                row.clear()
            wanted = piece.chunks
            row[text] = piece
        return [row[text] for text in sorted(row)]

    async def _piece(self, span: Span, before: int) -> Piece:
        piece = self.counting.get(span)
        if piece is None:
            piece = await self._counted(span, before)
            await asyncio.to_thread(self.counting.put, piece)
        self.says(before + piece.chunks)
        return piece

    async def _counted(self, span: Span, before: int) -> Piece:
        # An earlier run that was killed may have left something.
        await asyncio.to_thread(_empty, self.scratch)
        try:
            output = self.scratch / _OUTPUT
            done = await self.program.run(
                self.model,
                self.texts[span.text],
                span,
                output,
                lambda share: self.says(before + span.chunks * share),
            )
            if not done:
                return Piece(span, 0, ())
            counts = await asyncio.to_thread(read_counts, output, self.experts)
            return Piece(span, done, counts)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, self.scratch, ignore_errors=True))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sum(pieces: list[Counts]) -> Counts:
    return tuple(
        tuple(sum(numbers) for numbers in zip(*layers, strict=True))
        for layers in zip(*pieces, strict=True)
    )
