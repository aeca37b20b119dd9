"""A child of low priority that works for minutes or hours, and is not waited for in vain."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

# Without a word, and without computing: a disk or a network file system hangs.
IDLE_S = 1800.0
# Without a word, though it computes: a pass over the largest models takes old processors an hour.
SILENCE_S = 6 * 3600.0
_LOOK_S = 30.0
_KEPT_BYTES = 1 << 20
# Of all processes of the machine the first to end where memory does: before any engine.
_OOM_SCORE = "1000"

Started = Callable[[asyncio.subprocess.Process], None]
"""Told of each child, so that it can be made to stand still."""


def ignored(_: asyncio.subprocess.Process) -> None:
    """Where nobody wants to know of a child."""


@dataclass(frozen=True, slots=True)
class Ended:
    """:ivar code: its exit status. :ivar out: the end of what it said, `errors` of its log.

    :ivar enough: it was ended since nothing more was wanted of it.
    """

    code: int
    out: str
    errors: str
    enough: bool = False


class HungError(Exception):
    """It did nothing for too long, and was ended."""


@asynccontextmanager
async def child(
    *command: str,
    niceness: int,
    started: Started,
    descriptors: tuple[int, ...] = (),
    joined: bool = False,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child that has ended when the context has.

    :param command: its paths absolute. :param descriptors: that it gets, beside the usual ones.
    :param joined: its log comes on standard output, too, in the order in which it says both.
    :raises OSError: it cannot be started.
    """
    # Its own arguments are all that an engine's tool is to go by.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_")}
    # Threads that spin while they wait for one that has no processor take it from what serves: on a
    # busy machine the same work took twice as long, and three times the processor.
    environment["OMP_WAIT_POLICY"] = "passive"
    process = await asyncio.create_subprocess_exec(
        # The kernel ends it when we die, whatever kills us. A sandbox that allows no niceness is
        # no hindrance: it is said, and the run goes on.
        *("setpriv", "--pdeathsig", "KILL", "--", "nice", "-n", str(niceness), *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if joined else asyncio.subprocess.PIPE,
        env=environment,
        cwd="/",
        pass_fds=descriptors,
    )
    try:
        _expendable(process.pid)
        started(process)
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.shield(process.wait())


def _expendable(pid: int) -> None:
    # A child that ended already, or a system without it, is no hindrance.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM_SCORE)


async def run_to_end(
    process: asyncio.subprocess.Process,
    hear: Callable[[str], bool],
    *,
    idle_s: float = IDLE_S,
    silence_s: float = SILENCE_S,
) -> Ended:
    """:param hear: told the lines of its standard output as they come, a last one that is not whole
        yet once more later; says whether nothing more is wanted.

    :raises HungError: it neither says nor computes anything for `idle_s`, or says nothing for
        `silence_s`.
    """
    clock = asyncio.get_running_loop().time
    heard_s = clock()
    enough = False

    async def read(stream: asyncio.StreamReader | None, tell: Callable[[str], bool] | None) -> str:
        nonlocal heard_s, enough
        assert stream is not None
        kept = line = b""
        while piece := await stream.read(65536):
            heard_s = clock()
            kept = (kept + piece)[-_KEPT_BYTES:]
            if tell is not None:
                line = (line + piece)[-_KEPT_BYTES:]
                if not enough and tell(line.decode(errors="replace")):
                    enough = True
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                line = line.rpartition(b"\n")[2]
        return kept.decode(errors="replace")

    both = asyncio.gather(read(process.stdout, hear), read(process.stderr, None))
    worked_s, computed = clock(), -1
    try:
        while not (await asyncio.wait({both}, timeout=min(_LOOK_S, idle_s / 4)))[0]:
            now_s, now = clock(), _computed(process.pid)
            if now != computed:
                worked_s, computed = now_s, now
            if now_s - max(heard_s, worked_s) > idle_s or now_s - heard_s > silence_s:
                raise HungError
        out, errors = await both
    finally:
        both.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await both
    return Ended(await process.wait(), out, errors, enough)


def complaint(ended: Ended) -> str:
    """What a tool of the engine said went wrong, in one line."""
    lines = [line.strip() for line in ended.errors.splitlines() if line.strip()]
    errors = [said for line in lines if (said := line.partition(" E ")[2])]
    # What comes after the first is what could not be done then.
    said = errors[0] if errors else (lines or ["no message"])[-1]
    return f"exit {ended.code}: {said[:200]}"


def _computed(pid: int) -> int:
    """Processor time in ticks, of all its threads; -1 where there is none to be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return -1
