"""What the appliers need of systemd: a narrow port, and the few ways in which it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshd.errors import UserError


@dataclass(frozen=True, slots=True)
class UnitState:
    """One loaded service, in systemd's own words.

    :ivar result: systemd.service(5) "Result", e.g. ``success``, ``exit-code``, ``oom-kill``.
    :ivar exit_code: what `waitid` calls si_code: 1 exited, 2 killed, 3 dumped; 0 not yet.
    :ivar exit_status: of the last main process: exit status, or the signal's number.
    """

    unit: str
    active_state: str
    sub_state: str
    main_pid: int = 0
    restarts: int = 0
    result: str = "success"
    exit_code: int = 0
    exit_status: int = 0


class SystemdError(UserError):
    """systemd refused or failed; the message is one line for people."""


class NoSuchUnit(SystemdError):  # noqa: N818 - named as systemd names it
    """Neither the unit nor its template is installed."""


class AccessDenied(SystemdError):  # noqa: N818 - named as D-Bus names it
    """Not for this process to do."""


class Unavailable(SystemdError):  # noqa: N818 - a state rather than a mistake
    """No connection to systemd: the bus is not there, or went away."""


class DeadlinePassed(SystemdError):  # noqa: N818 - says what happened
    """No answer in time; the job may still be under way."""


class JobFailed(SystemdError):  # noqa: N818 - named as systemd names it
    """A job ended, but not well. :ivar result: e.g. ``failed``, ``dependency``, ``canceled``."""

    def __init__(self, unit: str, result: str) -> None:
        super().__init__(f"{unit}: job {result}", hint=f"systemctl status {unit}")
        self.unit = unit
        self.result = result


class Systemd(Protocol):
    """The service manager. Every call has a deadline and raises `SystemdError`."""

    async def units(self) -> tuple[UnitState, ...]:
        """The loaded engine units, and no others."""

    async def reload(self) -> None:
        """Read all unit files again, as `systemctl daemon-reload` does."""

    async def start(self, unit: str) -> None:
        """Return when the start job is done. :raises JobFailed: it ended otherwise."""

    async def stop(self, unit: str) -> None:
        """Return when the unit is down and its failures, if any, are forgotten."""

    async def changed(self) -> None:
        """Return when an engine unit changed since the last call (or the connection did)."""

    async def close(self) -> None: ...
