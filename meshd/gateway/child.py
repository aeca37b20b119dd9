"""The gateway as a child process, for a node without systemd."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence

import structlog

from meshd.errors import UserError
from meshd.paths import Paths

_log = structlog.get_logger(__name__)

_RESTART_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_STOP_DEADLINE_S = 25.0
_SETTLED_S = 5.0


class GatewayChild:
    """Keeps one `meshd gateway` running with the addresses last asked for."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._listen: tuple[str, ...] = ()
        self._peers: tuple[str, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._ended = ""

    async def listen(self, addresses: Sequence[str], peers: Sequence[str] = ()) -> None:
        """Start it there, or see that it still runs.

        :param peers: where other nodes reach it; none for no such door.
        :raises UserError: it ended by itself, as it does where it cannot listen.
        """
        wanted = tuple(addresses), tuple(peers)
        if wanted != (self._listen, self._peers) or not self._task or self._task.done():
            await self.close()
            self._listen, self._peers = wanted
            if self._listen:
                self._task = asyncio.create_task(self._keep(), name="gateway child")
        if self._ended:
            where = ", ".join((*self._listen, *self._peers))
            raise UserError(
                f"the gateway does not stay up on {where}: {self._ended}",
                hint="the log above says why; `ss -ltnp` shows who has its ports",
            )

    async def close(self) -> None:
        task, self._task = self._task, None
        self._ended = ""
        if task:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep(self) -> None:
        starts = 0
        while True:
            try:
                process = await self._start()
            except OSError as error:
                self._ended, code = f"it cannot be started: {error}", None
            else:
                try:
                    if await self._lives(process):
                        starts = 0
                    code = await process.wait()
                except asyncio.CancelledError:
                    await _stop(process)
                    raise
                self._ended = f"it ended with {code}"
            delay_s = _RESTART_DELAYS_S[min(starts, len(_RESTART_DELAYS_S) - 1)]
            _log.error("the gateway ended, starting it again", exit_code=code, delay_s=delay_s)
            starts += 1
            await asyncio.sleep(delay_s)

    async def _lives(self, process: asyncio.subprocess.Process) -> bool:
        """Whether it is still there when one that cannot listen would long have ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLED_S):
                await process.wait()
        if process.returncode is None:
            self._ended = ""
        return process.returncode is None

    async def _start(self) -> asyncio.subprocess.Process:
        arguments = [sys.executable, "-m", "meshd.cli.main", "gateway"]
        arguments += ["--routes", str(self._paths.routes)]
        for address in self._listen:
            arguments += ["--listen", address]
        for address in self._peers:
            arguments += ["--peers", address]
        # Should we be killed, it must not stay behind and hold the port.
        return await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "TERM", "--", *arguments, stdin=asyncio.subprocess.DEVNULL
        )


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_DEADLINE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
