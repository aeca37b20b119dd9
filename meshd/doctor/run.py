"""The doctor: gather all evidence once, at the edge, then examine it, purely."""

from __future__ import annotations

import asyncio

from meshd.config.findings import Finding
from meshd.config.layers import Loaded, parse_layers
from meshd.config.load import ConfigError, load
from meshd.config.settings import Config
from meshd.control import ControlClient
from meshd.doctor import checks, systemctl
from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity, in_order
from meshd.doctor.listeners import read_listeners
from meshd.doctor.surroundings import read_disks, read_folders, read_kernel
from meshd.doctor.texts import read_texts
from meshd.errors import UserError
from meshd.mesh.record import DoctorSummary
from meshd.observe import NodeObserver
from meshd.paths import Paths
from meshd.pipeline import Observation, propose
from meshd.planner.plan import Decision
from meshd.status import NodeStatus

_STATUS_DEADLINE_S = 5.0
_OBSERVE_DEADLINE_S = 60.0


def examine(evidence: Evidence) -> tuple[Issue, ...]:
    """Everything that is wrong, errors first."""
    return in_order([issue for check in checks.ALL for issue in check(evidence)])


def summary(paths: Paths) -> DoctorSummary:
    """How this node is, as the other nodes shall know it. Blocking."""
    issues = examine(gather(paths))
    failures = [issue for issue in issues if issue.severity is Severity.ERROR]
    warnings = [issue for issue in issues if issue.severity is Severity.WARNING]
    return DoctorSummary(
        passed=len(checks.ALL) - len({issue.id for issue in issues}),
        warnings=len(warnings),
        failures=len(failures),
        worst=next((issue.summary[:200] for issue in (*failures, *warnings)), ""),
    )


def gather(paths: Paths) -> Evidence:
    """Look at this node. Changes nothing, and takes a bounded time whatever hangs."""
    return asyncio.run(_gather(paths))


async def _gather(paths: Paths) -> Evidence:
    loaded, findings = await asyncio.to_thread(_load, paths)
    usable = loaded or parse_layers(())
    with_systemd = systemctl.booted()
    observation, status, units, version, clock = await asyncio.gather(
        _observe(paths, usable, systemd=with_systemd),
        _status(paths),
        systemctl.read_units() if with_systemd else _nothing(),
        systemctl.read_version() if with_systemd else _none(),
        systemctl.read_clock() if with_systemd else _none(),
    )
    config = usable.config
    # Engines outlive a stopped meshd; a plan that does not know them would miss their memory.
    idle = status is None and not any(
        unit.name.startswith("mesh-llama@") and unit.active == "active" for unit in units
    )
    return Evidence(
        paths=paths,
        config=loaded.config if loaded else None,
        findings=findings,
        observation=observation,
        decisions=_decisions(config, observation, paths) if idle and loaded else (),
        status=status,
        units=units,
        systemd=version,
        listeners=await asyncio.to_thread(read_listeners, _ports(config)),
        disks=await asyncio.to_thread(read_disks, paths, config.node.model_dirs),
        folders=read_folders(paths),
        kernel=read_kernel(clock_synchronised=clock),
        unreadable=await asyncio.to_thread(read_texts, config),
    )


def _load(paths: Paths) -> tuple[Loaded | None, tuple[Finding, ...]]:
    try:
        loaded = load(paths)
    except ConfigError as error:
        return None, error.findings
    return loaded, loaded.findings


async def _observe(paths: Paths, loaded: Loaded, *, systemd: bool) -> Observation | None:
    try:
        async with asyncio.timeout(_OBSERVE_DEADLINE_S):
            return await NodeObserver(paths, systemd=systemd)(loaded)
    except TimeoutError:
        return None


async def _status(paths: Paths) -> NodeStatus | None:
    try:
        return await ControlClient(paths.control_socket, deadline_s=_STATUS_DEADLINE_S).status()
    except UserError:
        return None


def _decisions(
    config: Config, observation: Observation | None, paths: Paths
) -> tuple[Decision, ...]:
    """What a plan would say now, on a node where nothing of ours runs."""
    if observation is None:
        return ()
    return propose(config, observation, (), (), paths).plan.decisions


def _ports(config: Config) -> frozenset[int]:
    listen = [*config.gateway.listen, *([config.console.listen] if config.console.enabled else [])]
    ports = (address.rpartition(":")[2] for address in listen)
    return frozenset(int(port) for port in ports if port.isdigit())


async def _nothing() -> tuple[()]:
    return ()


async def _none() -> None:
    return None
