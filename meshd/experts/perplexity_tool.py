"""llama-perplexity as it is run here: on the processor, with low priority, and told only what it
knows.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.experts import logits_file, tool_child
from meshd.experts.logits_file import CHUNK_TOKENS, HEADER_BYTES, LogitsError
from meshd.experts.perplexity_output import MeasureError
from meshd.experts.tool_child import Ended, HungError, Started, ignored
from meshd.units.dialect import Dialect

TOOL = "llama-perplexity"
BASE = "--kl-divergence-base"
# So much it writes before it finds that a text has too few tokens.
BEFORE_TEXT_BYTES = 12
# In which the tool is to have read and cut a text into tokens; it may have to read a model first.
_TOKENS_S = 3600.0
_HELP_S = 60.0
_TOO_SHORT = re.compile(r"tokenizes to only (\d+) tokens")


@dataclass(frozen=True, slots=True)
class PerplexityTool:
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
            words = self.words(model, CHUNK_TOKENS, chunks, ("--file", text), (BASE, pipe))
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
        if len(begin) == BEFORE_TEXT_BYTES:
            raise too_short(text, ended)
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


async def perplexity_tool(build: EngineBuild, niceness: int, started: Started) -> PerplexityTool:
    """:raises MeasureError: the engine has none that runs."""
    binary = build.binary(TOOL)
    if binary is None:
        raise MeasureError(f"this engine has no {TOOL}")
    try:
        async with tool_child.child(
            *(binary.path, "--help"), niceness=0, started=ignored
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
    return PerplexityTool(binary.path, dialect, niceness, started)


def too_short(text: Path, ended: Ended) -> MeasureError:
    said = _TOO_SHORT.search(ended.errors)
    has = f"{said[1]} tokens, and " if said else ""
    return MeasureError(
        f"{text}: is too short: {has}{2 * CHUNK_TOKENS} tokens are needed", hint="a longer text"
    )
