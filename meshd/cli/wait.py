"""Waiting for a node to settle, with progress on a terminal."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from meshd.control import ControlClient
    from meshd.status import NodeStatus

_POLL_S = 0.2


async def until_settled(
    client: ControlClient, timeout_s: float, *, progress: TextIO | None = None
) -> NodeStatus:
    """The status once no model is loading any more, or when `timeout_s` is over.

    :param progress: gets one line that is rewritten, when it is a terminal.
    """
    from meshd.gateway.routes import ModelState

    started_s = time.monotonic()
    show = progress is not None and progress.isatty()
    while True:
        status = await client.status()
        waited_s = time.monotonic() - started_s
        loading = any(model.state is ModelState.LOADING for model in status.models)
        if show and progress:
            progress.write(f"\r\x1b[K{waited_s:4.0f} s  {status.sentence[:70]}")
            progress.flush()
        if not loading or waited_s >= timeout_s:
            if show and progress:
                progress.write("\r\x1b[K")
                progress.flush()
            return status
        await asyncio.sleep(_POLL_S)
