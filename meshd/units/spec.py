"""The contract between the planner's side and the appliers: what should run, and what does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

MESHD = "/usr/bin/meshd"
"""The program of guards, as the unit files have it; without systemd it is the one that runs."""

TERM = "MESHD_TERM"
"""A variable that no engine reads: another term of a split is another text at both of its ends, so
that all of it starts anew."""


ATTEMPT = "MESHD_ATTEMPT"
"""Likewise: the brain may not kill an engine that hangs, but another text is another process."""

ATTEMPTS_MOST = 999_999


class EngineKind(StrEnum):
    """GUARD is an end of the way between the other two: a program of meshd's, not an engine."""

    LLAMA = "llama"
    RPC = "rpc"
    GUARD = "guard"


class GpuAccess(StrEnum):
    """Which device nodes an engine needs; decides which lines of its hardening relax."""

    NONE = "none"
    NVIDIA = "nvidia"
    DRI = "dri"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine process, fully decided: both appliers start exactly this.

    :ivar name: the instance, ``[a-z0-9][a-z0-9._-]{0,62}``; the unit is ``mesh-<kind>@<name>``.
    :ivar model: the model's name as users know it (journal field MESHD_MODEL).
    :ivar argv: argv[0] is the absolute path of a binary of the engine, of a guard `MESHD`.
    :ivar environment: sorted pairs, beyond what the unit template sets.
    :ivar reads: absolute paths of every file that the engine must be able to read.
    :ivar memory_max_bytes: hard limit on system memory, None for no limit.
    :ivar load_bytes: bytes read from disk at start; for people, not part of the unit's text.
    :ivar attempt: counts up to have the engine restarted although nothing else changed.
    """

    kind: EngineKind
    name: str
    model: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    reads: tuple[str, ...] = ()
    gpu: GpuAccess = GpuAccess.NONE
    memory_max_bytes: int | None = None
    load_bytes: int = 0
    attempt: int = 0

    @property
    def unit(self) -> str:
        return f"mesh-{self.kind}@{self.name}.service"


class EngineState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine as it is now. RUNNING means that the process lives, not that it answers.

    :ivar text: the rendered drop-in that it was started with ("" where unknown): the diff's left
        side.
    :ivar restarts: automatic restarts since it was last started on purpose.
    """

    kind: EngineKind
    name: str
    state: EngineState
    text: str
    pid: int | None = None
    restarts: int = 0
    detail: str = ""

    @property
    def unit(self) -> str:
        return f"mesh-{self.kind}@{self.name}.service"


@dataclass(frozen=True, slots=True)
class Desired:
    """All that should run on this node, and nothing else should.

    :ivar generation: counts up with every change; the hand answers with it.
    :ivar listen: where systemd should hold the gateway's socket; empty leaves it alone.
    :ivar peers: likewise its door for other nodes: empty for none, None leaves it alone.
    :ivar leave: units that run and are nobody's business for now: as they are, so they stay.
    """

    generation: int
    engines: tuple[EngineSpec, ...] = ()
    listen: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    leave: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an applier did. :ivar errors: one line each, empty when all went well."""

    generation: int
    started: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class Applier(Protocol):
    """The port to whatever runs processes. Both implementations converge to `Desired`."""

    async def apply(self, desired: Desired) -> Outcome:
        """Converge; units whose text did not change are not touched."""

    async def observe(self) -> tuple[EngineStatus, ...]:
        """Every engine unit of ours, running or failed."""

    async def changed(self) -> None:
        """Return when the state of an engine has changed since the last call."""

    async def close(self) -> None:
        """Let go. Engines under systemd go on; child processes are ended."""
