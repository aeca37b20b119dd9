"""All that the doctor looks at, gathered once: frozen facts, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from meshd.config.findings import Finding
from meshd.config.settings import Config
from meshd.doctor.issue import Issue
from meshd.paths import Paths
from meshd.pipeline import Observation
from meshd.planner.plan import Decision
from meshd.status import NodeStatus


@dataclass(frozen=True, slots=True)
class Unit:
    """One systemd unit, as `systemctl show` tells. :ivar enabled: UnitFileState."""

    name: str
    load: str = "loaded"
    active: str = "inactive"
    sub: str = "dead"
    enabled: str = ""
    result: str = "success"
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Process:
    """:ivar unit: the systemd unit that it belongs to, "" for none."""

    pid: int
    command: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket. :ivar processes: who holds it; empty where we may not see it."""

    address: str
    port: int
    processes: tuple[Process, ...] = ()


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system below a folder of ours. :ivar used_for: ``models`` or ``state``."""

    path: str
    used_for: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of ours. :ivar mode: permission bits; None where it is not there."""

    path: str
    owner: str = ""
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """:ivar controllers: of cgroup v2, None where that is not the system's hierarchy.
    :ivar overcommit: vm.overcommit_memory (0 heuristic, 1 always, 2 never).
    :ivar clock_synchronised: None where nobody knows.
    :ivar ping_groups: net.ipv4.ping_group_range, first and last group id that may send pings.
    """

    controllers: frozenset[str] | None = frozenset({"cpu", "memory", "pids"})
    overcommit: int | None = 0
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    clock_synchronised: bool | None = True
    ping_groups: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One node, as found.

    :ivar config: None when it is not usable; ``findings`` say why.
    :ivar decisions: what a plan made now would say; empty when meshd runs, which knows better.
    :ivar status: what the running meshd says, None when it does not answer.
    :ivar units: ours and Debian's llama-server; empty without systemd.
    :ivar systemd: its version, None where it is not the service manager.
    :ivar unreadable: calibration texts of the configuration that meshd cannot read: path and why.
    """

    paths: Paths
    config: Config | None = None
    findings: tuple[Finding, ...] = ()
    observation: Observation | None = None
    decisions: tuple[Decision, ...] = ()
    status: NodeStatus | None = None
    units: tuple[Unit, ...] = ()
    systemd: int | None = None
    listeners: tuple[Listener, ...] = ()
    disks: tuple[Disk, ...] = ()
    folders: tuple[Folder, ...] = ()
    kernel: Kernel = Kernel()
    unreadable: tuple[tuple[str, str], ...] = ()

    def unit(self, name: str) -> Unit | None:
        return next((unit for unit in self.units if unit.name == name), None)


Check = Callable[[Evidence], Iterable[Issue]]
"""One file in `checks` each. Pure: evidence in, issues out."""
