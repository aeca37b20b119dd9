"""What was used of the token budgets, kept over a restart of the gateway.

Written every ten seconds while something changes, and at the end. Lost is what was used after the
last writing when the gateway is killed, the requests of rates (a minute's worth), and by a clock
that was set the same time as it was set by. There are no keys in it, and at most 61 pairs a key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from meshd.files import write_atomically
from meshd.gateway.accounts import Accounts, History

SCHEMA = 1
MAX_BYTES = 16 * 1024 * 1024
_EVERY_S = 10.0

_Used = dict[str, tuple[tuple[int, int], ...]]

_log = structlog.get_logger("meshd.gateway")


class _Saved(msgspec.Struct):
    """:ivar saved_s: Unix time. :ivar tokens: by a key's name: seconds before then, and tokens."""

    schema: int
    saved_s: float
    tokens: dict[str, list[tuple[float, int]]]


class AccountsFile:
    """Keeps `accounts` in a file."""

    def __init__(
        self,
        path: Path,
        accounts: Accounts,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """:param clock: the one that the accounts go by. :param now: Unix time."""
        self._path = path
        self._accounts = accounts
        self._clock = clock
        self._now = now
        self._written: _Used = {}
        self._failed = False

    async def load(self) -> None:
        """Take up what is there; what cannot be read is nothing."""
        saved = await asyncio.to_thread(_read, self._path)
        if saved is None:
            return
        aged_s = max(0.0, self._now() - saved.saved_s)
        history = {
            name: [(age_s + aged_s, tokens) for age_s, tokens in pairs]
            for name, pairs in saved.tokens.items()
        }
        self._accounts.remember(history, self._clock())

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Write it, if anything was used since the last time."""
        history = self._accounts.history(self._clock())
        used = _used(history, self._clock())
        if used == self._written:
            return
        data = msgspec.json.encode(_Saved(SCHEMA, self._now(), history))
        try:
            await asyncio.to_thread(_write, self._path, data)
        except OSError as error:
            if not self._failed:
                _log.warning("token budgets cannot be kept", error=f"{self._path}: {error}")
            self._failed = True
        else:
            self._written, self._failed = used, False


def _used(history: History, now_s: float) -> _Used:
    """What does not change by itself, as ages do."""
    return {
        name: tuple((round(now_s - age_s), tokens) for age_s, tokens in pairs)
        for name, pairs in history.items()
    }


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data, mode=0o600)


def _read(path: Path) -> _Saved | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("token budgets not known any more", error=f"{path}: {error.strerror}")
        return None
    try:
        if len(data) > MAX_BYTES:
            raise msgspec.ValidationError("it is too large")
        saved = msgspec.json.decode(data, type=_Saved)
        if saved.schema != SCHEMA:
            raise msgspec.ValidationError(f"it has schema {saved.schema}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("token budgets not known any more", error=f"{path}: {error}")
        return None
    return saved
