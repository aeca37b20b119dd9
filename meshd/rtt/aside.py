"""One blocking call at a time on a thread of its own, waited for no longer than a deadline.

Not the loop's executor: a name server or a kernel that never answers would fill its threads, and
the process would wait for them at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Aside:
    """:param name: of the thread, for people who look at the process."""

    def __init__(self, name: str, deadline_s: float) -> None:
        self._name = name
        self._deadline_s = deadline_s
        self._busy = False

    async def call(self, function: Callable[[], _T]) -> _T:
        """The function's result; whatever it raises is raised here.

        :raises TimeoutError: no result in time, or an earlier call has still not come back.
        """
        if self._busy:
            raise TimeoutError(f"{self._name}: an earlier call has not come back")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, error = None, None
            try:
                result = function()
            except Exception as raised:
                error = raised
            self._busy = False
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result, error)

        self._busy = True
        threading.Thread(target=work, name=self._name, daemon=True).start()
        async with asyncio.timeout(self._deadline_s):
            return await future
