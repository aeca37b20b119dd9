"""What the workshop takes: the tools that count, write and measure, and how it watches them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.experts.certificate import CertificateError
from meshd.experts.logits_file import LogitsError
from meshd.experts.ranking import Ranking, RankingError, Selection
from meshd.experts.wish import Text
from meshd.quality import Fidelity
from meshd.seeding.quota import Disk


class WaitingError(Exception):
    """Not now: something has to come first that is not ours to do; one sentence says what."""


class RefusedError(Exception):
    """It cannot be done as things are; one sentence says why."""


SAID = (UserError, OSError, RankingError, CertificateError, LogitsError, RefusedError)
"""What the work ends with where it cannot be done: each says why, for people."""


def in_words(error: Exception) -> str:
    """One sentence of any of `SAID`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


Started = Callable[[asyncio.subprocess.Process], None]
"""Told of each child, so that it can be made to stand still."""

Progress = Callable[[float], None]
"""Told how far it is, 0 to 1."""


class Count(Protocol):
    def __call__(
        self,
        files: tuple[str, ...],
        texts: tuple[Path, ...],
        folder: Path,
        build: EngineBuild,
        *,
        fingerprint: str,
        experts: tuple[int, ...],
        progress: Progress,
        started: Started,
    ) -> Awaitable[Ranking]:
        """:param folder: what was counted stays there until it is all."""
        ...


class Written(Protocol):
    @property
    def path(self) -> Path: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class Write(Protocol):
    def __call__(
        self,
        files: tuple[str, ...],
        selection: Selection,
        target: Path,
        *,
        progress: Callable[[int, int], None],
        stopped: Callable[[], bool],
    ) -> Written:
        """Blocks. Goes on with what an earlier call left."""
        ...


class SaveLogits(Protocol):
    def __call__(
        self,
        model: Path,
        text: Path,
        target: Path,
        build: EngineBuild,
        *,
        progress: Progress,
        started: Started,
    ) -> Awaitable[None]: ...


class Measure(Protocol):
    def __call__(
        self,
        model: Path,
        text: Path,
        logits: Path,
        domain: str,
        build: EngineBuild,
        *,
        progress: Progress,
        started: Started,
    ) -> Awaitable[Fidelity]: ...


class TryLogits(Protocol):
    def __call__(
        self, model: Path, text: Path, logits: Path, build: EngineBuild, *, started: Started
    ) -> Awaitable[None]:
        """:raises DifferError: these are not the whole model's on this text."""
        ...


@dataclass(frozen=True, slots=True)
class About:
    """A model, as far as it matters here.

    :ivar experts: by block, 0 of one without routed experts.
    :ivar vocabulary: how many tokens it has.
    :ivar used: experts that each token chooses in a block; 0 where that is not known.
    """

    experts: tuple[int, ...]
    vocabulary: int
    used: int = 0


class CheckLogits(Protocol):
    def __call__(self, path: Path, *, vocabulary: int, stopped: Callable[[], bool]) -> object:
        """Blocks. :raises ValueError: these are no logits of such a model."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """All but `count`, `save_logits`, `try_logits` and `measure` block, and are called in threads.

    :ivar build: the engine. :raises UserError: there is none that could do this.
    :ivar logits_bytes: that the whole model's logits on a text have at most, by its vocabulary.
    :ivar tls: this node's certificate in its mesh, for peers; None where there is no mesh.
    """

    build: Callable[[], EngineBuild]
    about: Callable[[tuple[str, ...]], About]
    fingerprint: Callable[[Sequence[Path]], str]
    calibration: Callable[[tuple[Text, ...]], str]
    count: Count
    write: Write
    shard_bytes: Callable[[tuple[str, ...], Selection], int]
    save_logits: SaveLogits
    try_logits: TryLogits
    measure: Measure
    logits_bytes: Callable[[int], int]
    check_logits: CheckLogits
    disk: Callable[[Path], Disk]
    tls: Path | None = None
