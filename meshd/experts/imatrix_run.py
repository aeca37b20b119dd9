"""One run of llama-imatrix over some chunks of a text, in a child process of low priority."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.experts import tool_child
from meshd.experts.ranking import RankingError
from meshd.experts.tool_child import Started, ignored
from meshd.units.dialect import Dialect

IMATRIX = "llama-imatrix"
CHUNK_TOKENS = 512
# All weights are read once a batch. More would take memory: the engine makes room for a row of
# logits for each of its tokens, 0.6 GB at a vocabulary of 150 000.
_BATCH_TOKENS = 1024
# Each tensor that is computed with is a line, but a file may have to come from a slow disk first.
SILENCE_S = 1800.0
_HELP_S = 60.0
_OUTPUT_MAX_BYTES = 64 * 1024
_LINE_MAX_BYTES = 4096
_TOO_SHORT = re.compile(rb"not enough tokens left|you need at least \d+ tokens")
_CHUNKS = re.compile(rb"computing over (\d+) chunks")
_BLOCK = re.compile(rb"collect_imatrix\[\d+\]:\s+blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Span:
    """Chunks of one text. :ivar text: its place among the texts."""

    text: int
    first: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Program:
    """llama-imatrix as it is run here. :ivar dialect: of its own help, not of llama-server's.

    :ivar started: told of each child.
    """

    path: str
    dialect: Dialect
    niceness: int
    silence_s: float
    started: Started

    async def run(
        self, model: str, text: Path, span: Span, output: Path, progress: Callable[[float], None]
    ) -> int:
        """Count over these chunks, or as many as the text has. Cancelling it ends the child.

        :param progress: of this run, 0 to 1; as far as the build says what it does.
        :return: how many chunks; with 0 there is no output.
        :raises RankingError: it failed, or said nothing for too long.
        """
        words = _words(self.dialect, model, text, span, output)
        listener = _Listener(span.chunks, progress)
        code = await _run(
            (self.path, *words), listener.hear, self.silence_s, self.started, self.niceness
        )
        if code != 0 and _TOO_SHORT.search(listener.end):
            return 0
        if code != 0:
            raise RankingError(f"{IMATRIX}: exit {code}: {_complaint(listener.end)}")
        if listener.chunks is None:
            raise RankingError(f"{IMATRIX} did not say how much it counted")
        return listener.chunks


async def program(
    build: EngineBuild,
    *,
    niceness: int,
    silence_s: float = SILENCE_S,
    started: Started = ignored,
) -> Program:
    """:raises RankingError: the engine has none that runs."""
    binary = build.binary(IMATRIX)
    if binary is None:
        raise RankingError(f"this engine has no {IMATRIX}")
    said = bytearray()
    code = await _run((binary.path, "--help"), said.extend, _HELP_S, ignored, 0)
    if code != 0:
        raise RankingError(f"{IMATRIX} --help: exit {code}: {_complaint(bytes(said))}")
    try:
        dialect = Dialect.from_help(said.decode(errors="replace"), build=IMATRIX)
    except UserError as error:
        raise RankingError(f"{IMATRIX} --help: {error}") from error
    return Program(binary.path, dialect, niceness, silence_s, started)


def _words(dialect: Dialect, model: str, text: Path, span: Span, output: Path) -> tuple[str, ...]:
    threads = str(len(os.sched_getaffinity(0)))
    wishes: tuple[tuple[tuple[str, ...], str, bool], ...] = (
        # names, value, whether nothing can be counted without
        (("--model",), str(Path(model).absolute()), True),
        (("--file",), str(text.absolute()), True),
        (("--output",), str(output.absolute()), True),
        (("--ctx-size",), str(CHUNK_TOKENS), True),
        (("--batch-size",), str(_BATCH_TOKENS), True),
        (("--ubatch-size",), str(_BATCH_TOKENS), True),
        (("--chunks",), str(span.chunks), True),
        (("--chunk", "--from-chunk"), str(span.first), span.first > 0),
        (("--output-format",), "gguf", False),
        # It would write the whole file time and again, with layers counted to different tokens.
        (("--output-frequency",), str(10**9), False),
        (("--no-ppl",), "", False),
        (("--device",), "none", False),
        (("--gpu-layers",), "0", False),
        (("--no-op-offload",), "", False),
        (("--no-repack",), "", False),  # weights stay pages of the file
        (("--fit",), "off", False),
        (("--threads",), threads, False),
        (("--offline",), "", False),
        (("--verbosity", "--log-verbosity"), "5", False),  # a line for each tensor
    )
    words: list[str] = []
    for names, value, needed in wishes:
        known = (name for name in names if (option := dialect.options.get(name)) is not None
                 and not option.removed and bool(option.values) == bool(value))  # fmt: skip
        name = next(known, None)
        if name is not None:
            words += (name, value) if value else (name,)
        elif needed:
            raise RankingError(f"this engine's {IMATRIX} knows no {names[0]}")
    return tuple(words)


class _Listener:
    """Follows what the child says: how much it will count, and which layer it is at."""

    def __init__(self, wanted: int, progress: Callable[[float], None]) -> None:
        self.end = b""
        self.chunks: int | None = None
        self._wanted = wanted
        self._progress = progress
        self._rest = b""
        self._passes = 0
        self._block = -1
        self._blocks = 1

    def hear(self, piece: bytes) -> None:
        self.end = (self.end + piece)[-_OUTPUT_MAX_BYTES:]
        *lines, rest = (self._rest + piece).split(b"\n")
        self._rest = rest[-_LINE_MAX_BYTES:]
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if found := _CHUNKS.search(line):
            self.chunks = int(found[1])
        elif (found := _BLOCK.search(line)) is not None:
            block = int(found[1])
            if block < self._block:
                self._passes += 1
            self._block = block
            self._blocks = max(self._blocks, block + 1)
            passes = -(-(self.chunks or self._wanted) * CHUNK_TOKENS // _BATCH_TOKENS)
            # Of the first pass it is not known how many layers it has.
            within = block / self._blocks if self._passes else 0.0
            self._progress(min(1.0, (self._passes + within) / passes))


async def _run(
    command: tuple[str, ...],
    hear: Callable[[bytes], object],
    silence_s: float,
    started: Started,
    niceness: int,
) -> int:
    """:return: the exit code. :raises RankingError: it does not start, or is silent too long."""
    clock = asyncio.get_running_loop()
    try:
        async with tool_child.child(
            *command, niceness=niceness, started=started, joined=True
        ) as process:
            assert process.stdout is not None
            async with asyncio.timeout(silence_s) as silence:
                while piece := await process.stdout.read(65536):
                    hear(piece)
                    silence.reschedule(clock.time() + silence_s)
                return await process.wait()
    except TimeoutError as error:
        raise RankingError(f"{IMATRIX} said nothing for {silence_s:.0f} s") from error
    except OSError as error:
        raise RankingError(f"{command[0]}: {error.strerror or error}") from error


def _complaint(said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if " E " in line or "error" in line.lower()]
    return (errors or lines or ["no message"])[-1].strip()[:200]
