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
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.experts import logits_file, tool_child
from meshd.experts.logits_file import CHUNK_TOKENS, HEADER_BYTES, TOKENS, LogitsError, chunks_of
from meshd.experts.perplexity_output import MeasureError, fidelity, last_chunk, told
from meshd.experts.stoppable_thread import StoppableThread
from meshd.experts.tool_child import Ended, HungError, Started
from meshd.files import sync_folder
from meshd.models.gguf_facts import read_facts
from meshd.quality import Fidelity
from meshd.units.dialect import Dialect

__all__ = ["TOOL", "MeasureError", "measure", "save_logits"]

TOOL = "llama-perplexity"
# All weights are read once a micro-batch. The whole model may not fit in memory, so it has as many
# chunks as there is room for: the engine makes room for a row of logits for each of its tokens.
_BATCH_CHUNKS = 4
_ROOM_BYTES = 1_300_000_000
# In which the tool is to have read and cut a text into tokens; it may have to read a model first.
_TOKENS_S = 3600.0
_HELP_S = 60.0
# So much it writes before it finds that a text has too few tokens.
_BEFORE_TEXT_BYTES = 12
_TOO_SHORT = re.compile(r"tokenizes to only (\d+) tokens")
_BASE = "--kl-divergence-base"
_T = TypeVar("_T")


def _nobody(_: asyncio.subprocess.Process) -> None:
    """Where nobody wants to know of a child."""


async def save_logits(
    model: Path,
    text: Path,
    target: Path,
    build: EngineBuild,
    *,
    progress: Callable[[float], None],
    started: Started = _nobody,
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
    tool = await _tool(build, niceness, started)
    chunks = chunks_of(tokens)
    with _part_of(target) as part:
        words = tool.words(model, batch_tokens, chunks, ("--file", text), (_BASE, part))
        ended = await tool.run(words, _rising(progress, chunks))
        if part.stat().st_size == _BEFORE_TEXT_BYTES:
            raise _too_short(text, ended)
        try:
            await _in_thread(lambda stop: logits_file.seal(part, tokens=tokens, stopped=stop))
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
    started: Started = _nobody,
    tokens: int = TOKENS,
    niceness: int = 19,
) -> Fidelity:
    """A model beside the one that `logits` were saved of, on the text that they were saved on.

    Cancelling it ends the child.

    :param logits: whatever another node gave; not believed before all of it was looked at.
    :raises MeasureError: these are no logits of this text or vocabulary, or it failed.
    """
    tool = await _tool(build, niceness, started)
    try:
        header = await _in_thread(
            lambda stop: logits_file.check(logits, tokens=tokens, stopped=stop)
        )
        _, begin = await asyncio.to_thread(logits_file.begin_of, logits)
    except (LogitsError, OSError) as error:
        raise MeasureError(f"{logits}: {error}") from error
    ours = await tool.begin(model, text, chunks_of(tokens))
    if begin != ours:
        raise MeasureError(f"{logits}: {_difference(begin, ours)}")
    chunks = header.counted
    words = tool.words(model, CHUNK_TOKENS, header.chunks, ("--kl-divergence", ""), (_BASE, logits))
    ended = await tool.run(words, _rising(progress, chunks), lambda said: told(said, chunks))
    try:
        return fidelity(ended.out, domain, chunks)
    except MeasureError as error:
        raise MeasureError(f"{model.name}: {error}; {tool_child.complaint(ended)}") from error


@dataclass(frozen=True, slots=True)
class _Tool:
    """:ivar dialect: of its own help, not of llama-server's."""

    path: str
    dialect: Dialect
    niceness: int
    started: Started

    def words(
        self, model: Path, batch_tokens: int, chunks: int, *more: tuple[str, Path | str]
    ) -> tuple[str, ...]:
        """:param batch_tokens: for which all weights are read once.

        :param more: what to do with it. :raises MeasureError: it cannot be told so.
        """
        batch = str(batch_tokens)
        threads = str(len(os.sched_getaffinity(0)))
        needed = (
            ("--model", model),
            *more,
            ("--ctx-size", str(CHUNK_TOKENS)),
            ("--batch-size", batch),
            ("--ubatch-size", batch),
            ("--chunks", str(chunks)),
        )
        wished = (
            ("--device", "none"),
            ("--gpu-layers", "0"),
            ("--no-op-offload", ""),
            ("--no-repack", ""),
            ("--fit", "off"),
            ("--no-warmup", ""),
            ("--threads", threads),
            ("--offline", ""),
        )
        words: list[str] = []
        for name, value in (*needed, *wished):
            option = self.dialect.options.get(name)
            if option is None or option.removed or bool(option.values) != bool(str(value)):
                if (name, value) in wished:
                    continue
                raise MeasureError(f"this engine's {TOOL} knows no {name}")
            words += (name, str(value)) if option.values else (name,)
        return tuple(words)

    async def run(
        self,
        words: tuple[str, ...],
        hear: Callable[[str], None],
        enough: Callable[[str], bool] = lambda _: False,
    ) -> Ended:
        """:param enough: whether what it said is all that is wanted.

        :raises MeasureError: it failed, or did nothing for too long.
        """

        def listen(said: str) -> bool:
            hear(said)
            return enough(said)

        try:
            async with tool_child.child(
                self.path, *words, niceness=self.niceness, started=self.started
            ) as process:
                ended = await tool_child.run_to_end(process, listen)
        except HungError as error:
            raise MeasureError(f"{TOOL} did nothing for too long") from error
        except OSError as error:
            raise MeasureError(f"{self.path}: {error.strerror or error}") from error
        if ended.code != 0 and not ended.enough:
            raise MeasureError(f"{TOOL}: {tool_child.complaint(ended)}")
        return ended

    async def begin(self, model: Path, text: Path, chunks: int) -> bytes:
        """How logits of this text would begin, with this model's tokens.

        The tool itself says it, before it computes anything: no other cuts a text exactly so. It
        writes into a pipe, and is ended when that has been read.

        :raises MeasureError: it does not say.
        """
        receiving, sending = os.pipe()
        reader = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(receiving, "rb", 0)
        )
        pipe = Path(f"/proc/self/fd/{sending}")
        try:
            words = self.words(model, CHUNK_TOKENS, chunks, ("--file", text), (_BASE, pipe))
            async with tool_child.child(
                *(self.path, *words),
                niceness=self.niceness,
                started=self.started,
                descriptors=(sending,),
            ) as process:
                os.close(sending)
                sending = -1
                ending = asyncio.create_task(
                    tool_child.run_to_end(process, lambda _: False, silence_s=_TOKENS_S)
                )
                begun = asyncio.create_task(_begin(reader))
                try:
                    await asyncio.wait({begun, ending}, return_when=asyncio.FIRST_COMPLETED)
                    if ending.done() and ending.exception() is not None:
                        ending.result()
                    # What it wrote before it ended is in the pipe, and then comes its end.
                    begin, whole = await begun
                    if whole:
                        return begin
                    ended = await ending
                finally:
                    for task in (begun, ending):
                        task.cancel()
                    await asyncio.gather(begun, ending, return_exceptions=True)
        except HungError as error:
            raise MeasureError(f"{TOOL} did nothing for too long") from error
        except OSError as error:
            raise MeasureError(f"{self.path}: {error.strerror or error}") from error
        finally:
            transport.close()
            if sending >= 0:
                os.close(sending)
        if len(begin) == _BEFORE_TEXT_BYTES:
            raise _too_short(text, ended)
        raise MeasureError(f"{TOOL} with {model.name}: {tool_child.complaint(ended)}")


async def _begin(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """What there is of it, and whether that is all."""
    begin = b""
    try:
        begin = await reader.readexactly(HEADER_BYTES)
        header = logits_file.read_header(begin)
        return begin + await reader.readexactly(header.begin_bytes - HEADER_BYTES), True
    except asyncio.IncompleteReadError as error:
        return begin + error.partial, False
    except LogitsError:
        return begin, False


async def _tool(build: EngineBuild, niceness: int, started: Started) -> _Tool:
    """:raises MeasureError: the engine has none that runs."""
    binary = build.binary(TOOL)
    if binary is None:
        raise MeasureError(f"this engine has no {TOOL}")
    try:
        async with tool_child.child(
            *(binary.path, "--help"), niceness=0, started=_nobody
        ) as process:
            ended = await tool_child.run_to_end(process, lambda _: False, silence_s=_HELP_S)
    except HungError as error:
        raise MeasureError(f"{TOOL} --help says nothing") from error
    except OSError as error:
        raise MeasureError(f"{binary.path}: {error.strerror or error}") from error
    if ended.code != 0:
        raise MeasureError(f"{TOOL} --help: {tool_child.complaint(ended)}")
    try:
        dialect = Dialect.from_help(ended.out, build=TOOL)
    except UserError as error:
        raise MeasureError(f"{TOOL} --help says nothing of use") from error
    return _Tool(binary.path, dialect, niceness, started)


def _difference(theirs: bytes, ours: bytes) -> str:
    """Between what two files of logits begin with."""
    there, here = logits_file.read_header(theirs), logits_file.read_header(ours)
    if there.vocabulary != here.vocabulary:
        return (
            f"it is of a vocabulary of {there.vocabulary} tokens, the model has {here.vocabulary}"
        )
    if there.chunks != here.chunks:
        return f"it has {there.chunks} chunks of the text, which has {here.chunks}"
    return "it is of another text, or of a model that cuts this one into other tokens"


def _too_short(text: Path, ended: Ended) -> MeasureError:
    said = _TOO_SHORT.search(ended.errors)
    has = f"{said[1]} tokens, and " if said else ""
    return MeasureError(
        f"{text}: is too short: {has}{2 * CHUNK_TOKENS} tokens are needed", hint="a longer text"
    )


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
def _part_of(target: Path) -> Iterator[Path]:
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


async def _in_thread(work: Callable[[Callable[[], bool]], _T]) -> _T:
    thread = StoppableThread("logits")
    try:
        return await thread.run(work)
    finally:
        thread.close()
