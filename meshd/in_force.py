"""Which configuration is in force: the one on disk, the last good one, or one on trial."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

import structlog

from meshd.config.load import ConfigError, Loaded, SourceFile
from meshd.errors import UserError
from meshd.generations import Generation

_log = structlog.get_logger(__name__)

_TRIAL_LEAST_S = 1.0
_TRIAL_MOST_S = 86_400.0


class Sources(Protocol):
    """Where configurations come from. `load_config` and `parse` raise `ConfigError`."""

    def load_config(self) -> Loaded: ...

    def parse(self, files: tuple[SourceFile, ...]) -> Loaded: ...

    def last_good(self) -> list[Generation]: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """:ivar before: what comes back when nobody keeps the candidate. :ivar ends_s: monotonic."""

    candidate: Loaded
    before: Loaded
    ends_s: float


class ConfigInForce:
    """The configuration that the brain acts on, and what there is to say of it.

    :ivar loaded: set by `boot`, and from then on always a valid one.
    :ivar rejected: why the file on disk was refused at the last reload, or "".
    :ivar fallback: why an older generation runs since boot, or "".
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._loaded: Loaded | None = None
        self.rejected = ""
        self.fallback = ""
        self.trial: Trial | None = None

    @property
    def loaded(self) -> Loaded:
        assert self._loaded is not None, "boot comes first"
        return self._loaded

    def boot(self) -> None:
        """Take the configuration on disk; when it is bad, the newest good generation, loudly.

        :raises ConfigError: when there is no good generation either.
        """
        try:
            self._loaded = self._sources.load_config()
        except ConfigError as error:
            for generation in self._sources.last_good():
                with contextlib.suppress(ConfigError):
                    self._loaded = self._sources.parse(generation.files)
                    self.fallback = (
                        f"degraded: the configuration is bad ({_first_line(error)}), running the "
                        f"last good one, generation {generation.number}"
                    )
                    _log.error(self.fallback, error=str(error))
                    return
            raise

    def reload(self) -> None:
        """Take the configuration on disk; it ends a trial.

        :raises ConfigError: when it is bad; everything stays as it was, and `rejected` says why.
        """
        try:
            loaded = self._sources.load_config()
        except ConfigError as error:
            self.rejected = f"reload rejected: {_first_line(error)}"
            raise
        self._loaded, self.trial = loaded, None
        self.rejected = self.fallback = ""

    def begin_trial(self, files: tuple[SourceFile, ...], timeout_s: float, now_s: float) -> None:
        """Put `files` in force until `now_s + timeout_s`. A trial in a trial undoes both.

        :raises ConfigError: when they are bad. :raises UserError: for an absurd time.
        """
        if not _TRIAL_LEAST_S <= timeout_s <= _TRIAL_MOST_S:
            raise UserError(f"a trial of {timeout_s:g} s", hint="choose from 1 to 86400 seconds")
        candidate = self._sources.parse(files)
        before = self.trial.before if self.trial else self.loaded
        self.trial = Trial(candidate, before, now_s + timeout_s)
        self._loaded = candidate

    def end_trial(self, *, keep: bool) -> None:
        """:raises UserError: when nothing is on trial (it may just have run out)."""
        if self.trial is None:
            raise UserError("nothing is on trial; it may have run out", hint="meshd try FILE")
        trial, self.trial = self.trial, None
        self._loaded = trial.candidate if keep else trial.before
        if keep:
            self.rejected = self.fallback = ""

    def expire_trial(self, now_s: float) -> None:
        """Undo a trial whose time is over."""
        if self.trial and now_s >= self.trial.ends_s:
            _log.warning("the trial ran out, the configuration before it comes back")
            self.end_trial(keep=False)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
