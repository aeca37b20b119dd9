"""What a model loses where it is served from a part of its experts, by the engine's own tool.

The whole model's probabilities for a text are saved once; a shard is measured beside them. Both run
on the processor with the weights as they lie in the file: a model that is too large for this
node's memory comes from the disk, once for each pass, and on one machine both round alike, so that
a model beside itself loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.experts import logits_file, tool_child
from meshd.experts.logits_file import CHUNK_TOKENS, TOKENS, LogitsError, chunks_of
from meshd.experts.logits_thread import in_logits_thread
from meshd.experts.perplexity_output import MeasureError, fidelity, last_chunk, told
from meshd.experts.perplexity_tool import BASE, BEFORE_TEXT_BYTES, TOOL, perplexity_tool, too_short
from meshd.experts.tool_child import Started, ignored
from meshd.files import sync_folder
from meshd.models.gguf_facts import read_facts
from meshd.quality import Fidelity

__all__ = ["TOOL", "MeasureError", "measure", "save_logits"]

# All weights are read once a micro-batch. The whole model may not fit in memory, so it has as many
# chunks as there is room for: the engine makes room for a row of logits for each of its tokens.
_BATCH_CHUNKS = 4
_ROOM_BYTES = 1_300_000_000


async def save_logits(
    model: Path,
    text: Path,
    target: Path,
    build: EngineBuild,
    *,
    progress: Callable[[float], None],
    started: Started = ignored,
    tokens: int = TOKENS,
    niceness: int = 19,
) -> None:
    """The model's probabilities for the first `tokens` of a text; there is nothing half done of it.

    Cancelling it ends the child.

    :param model: its first file. :param started: told of each child.
    :raises MeasureError: it failed, or did nothing for too long.
    :raises OSError: the target cannot be written.
    """
    batch_tokens = await asyncio.to_thread(_batch_tokens, model, chunks_of(tokens))
    tool = await perplexity_tool(build, niceness, started)
    chunks = chunks_of(tokens)
    with part_of(target) as part:
        words = tool.words(model, batch_tokens, chunks, ("--file", text), (BASE, part))
        ended = await tool.run(words, _rising(progress, chunks))
        if part.stat().st_size == BEFORE_TEXT_BYTES:
            raise too_short(text, ended)
        try:
            await in_logits_thread(lambda stop: logits_file.seal(part, tokens=tokens, stopped=stop))
        except LogitsError as error:
            raise MeasureError(f"{model.name}: {error}; {tool_child.complaint(ended)}") from error
        await asyncio.to_thread(_rename, part, target)


async def measure(
    model: Path,
    text: Path,
    logits: Path,
    domain: str,
    build: EngineBuild,
    *,
    progress: Callable[[float], None],
    started: Started = ignored,
    tokens: int = TOKENS,
    niceness: int = 19,
) -> Fidelity:
    """A model beside the one that `logits` were saved of, on the text that they were saved on.

    Cancelling it ends the child.

    :param logits: whatever another node gave; not believed before all of it was looked at.
    :raises MeasureError: these are no logits of this text or vocabulary, or it failed.
    """
    tool = await perplexity_tool(build, niceness, started)
    try:
        header = await in_logits_thread(
            lambda stop: logits_file.check(logits, tokens=tokens, stopped=stop)
        )
        _, begin = await asyncio.to_thread(logits_file.begin_of, logits)
    except (LogitsError, OSError) as error:
        raise MeasureError(f"{logits}: {error}") from error
    ours = await tool.begin(model, text, chunks_of(tokens))
    if begin != ours:
        raise MeasureError(f"{logits}: {logits_file.difference(begin, ours)}")
    chunks = header.counted
    words = tool.words(model, CHUNK_TOKENS, header.chunks, ("--kl-divergence", ""), (BASE, logits))
    ended = await tool.run(words, _rising(progress, chunks), lambda said: told(said, chunks))
    try:
        return fidelity(ended.out, domain, chunks)
    except MeasureError as error:
        raise MeasureError(f"{model.name}: {error}; {tool_child.complaint(ended)}") from error


def _rising(progress: Callable[[float], None], chunks: int) -> Callable[[str], None]:
    """For what a child says: tells how many of the chunks are done."""
    done = 0

    def hear(said: str) -> None:
        nonlocal done
        if (now := last_chunk(said)) > done:
            done = now
            progress(min(1.0, done / chunks))

    return hear


def _batch_tokens(model: Path, chunks: int) -> int:
    """:raises MeasureError: the model cannot be read."""
    try:
        row_bytes = 4 * max(1, read_facts(model).vocabulary_size)
    except UserError as error:
        raise MeasureError(error.message, hint=error.hint) from error
    room = max(1, _ROOM_BYTES // row_bytes // CHUNK_TOKENS)
    return CHUNK_TOKENS * min(_BATCH_CHUNKS, chunks, room)


@contextlib.contextmanager
def part_of(target: Path) -> Iterator[Path]:
    """A file beside it that is gone with the context, unless it was renamed."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _rename(part: Path, target: Path) -> None:
    part.chmod(0o644)
    part.replace(target)
    sync_folder(target.parent)
