"""The applier for nodes under systemd: the brain's side, without privileges.

What is wanted goes into a file, the root hand does it (mesh-apply.path) and answers with another.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from watchfiles import awatch

from meshd.paths import Paths
from meshd.units.dbus import DbusSystemd
from meshd.units.desired_file import RESULT, read_outcome, write_desired
from meshd.units.observe import UNITS, observe
from meshd.units.port import Systemd
from meshd.units.spec import Desired, EngineStatus, Outcome

_ANSWER_S = 18.0
# A path unit can miss a change that falls between the hand's last look and its exit.
_REMIND_S = 0.7
_POLL_MS = 50
# inotify begins after the first look: what falls between is seen at the next.
_LOOK_AGAIN_MS = 250


class SystemdApplier:
    """Implements `meshd.units.spec.Applier`.

    :param answer_s: how long the hand may take; it goes on after that, and the next call asks anew.
    """

    def __init__(
        self,
        paths: Paths,
        systemd: Systemd | None = None,
        *,
        units: Path = UNITS,
        result: Path = RESULT,
        answer_s: float = _ANSWER_S,
        remind_s: float = _REMIND_S,
    ) -> None:
        self._paths = paths
        self._systemd = systemd or DbusSystemd()
        self._units = units
        self._result = result
        self._answer_s = answer_s
        self._remind_s = remind_s

    async def apply(self, desired: Desired) -> Outcome:
        """:raises UserError: more is wanted than the file may hold."""
        before = _identity(self._result)
        try:
            async with asyncio.timeout(self._answer_s):
                while True:
                    await asyncio.to_thread(write_desired, self._paths.desired, desired)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._remind_s):
                            return await self._answer(desired.generation, before)
        except TimeoutError:
            error = (
                f"no answer from the hand within {self._answer_s:g} s "
                "(systemctl status mesh-apply.path mesh-apply.service)"
            )
            return Outcome(desired.generation, errors=(error,))
        except OSError as problem:
            return Outcome(desired.generation, errors=(f"cannot ask the hand: {problem}",))

    async def _answer(self, generation: int, before: tuple[int, int] | None) -> Outcome:
        """The hand's answer to this generation; one from before may bear the same number."""
        stop = asyncio.Event()
        watch = awatch(
            self._result.parent,
            stop_event=stop,
            step=_POLL_MS,
            rust_timeout=_LOOK_AGAIN_MS,
            yield_on_timeout=True,
            recursive=False,
        )
        try:
            while True:
                if _identity(self._result) != before:
                    outcome = await asyncio.to_thread(read_outcome, self._result)
                    if outcome and outcome.generation == generation:
                        return outcome
                await anext(watch)
        finally:
            stop.set()
            await watch.aclose()

    async def observe(self) -> tuple[EngineStatus, ...]:
        """:raises SystemdError: systemd does not answer."""
        return await observe(self._systemd, self._units)

    async def changed(self) -> None:
        await self._systemd.changed()

    async def close(self) -> None:
        await self._systemd.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns
