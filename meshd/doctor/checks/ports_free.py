"""The ports of the API and the console are ours or free."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.config.settings import Config
from meshd.doctor.evidence import Evidence, Listener, Process
from meshd.doctor.issue import Issue, Severity

_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_OUR_UNITS = ("mesh-gateway.", "meshd.")


def check(evidence: Evidence) -> Iterator[Issue]:
    config = evidence.config or Config()
    wanted = [("gateway.listen", address) for address in config.gateway.listen]
    if config.console.enabled:
        wanted.append(("console.listen", config.console.listen))
    for setting, address in wanted:
        for listener in evidence.listeners:
            if _clash(address, listener) and not _ours(evidence, listener):
                yield _issue(evidence, setting, address, listener)


def _issue(evidence: Evidence, setting: str, address: str, listener: Listener) -> Issue:
    holders = tuple(
        f"pid {process.pid}: {process.command}" + (f" ({process.unit})" if process.unit else "")
        for process in listener.processes
    )
    units = [process.unit for process in listener.processes if process.unit]
    if units:
        mend = f"systemctl disable --now {units[0]}"
    elif listener.processes:
        mend = f"kill {listener.processes[0].pid}"
    else:
        mend = "sudo meshd doctor   # root sees which process it is"
    return Issue(
        f"port.held:{listener.port}",
        Severity.ERROR,
        f"{address} ({setting}) is taken by another process",
        (f"{listener.address}:{listener.port} is listened on", *holders),
        f"{mend}   # or another {setting} in {evidence.paths.config}",
    )


def _clash(wanted: str, listener: Listener) -> bool:
    host, _, port = wanted.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104
    if port != str(listener.port):
        return False
    host = {"localhost": "127.0.0.1"}.get(host, host)
    return host == listener.address or host in _WILDCARDS or listener.address in _WILDCARDS


def _ours(evidence: Evidence, listener: Listener) -> bool:
    if not listener.processes:  # nobody that we may see: ours if we run at all
        return evidence.status is not None or _socket_active(evidence)
    return any(_is_ours(evidence, process) for process in listener.processes)


def _is_ours(evidence: Evidence, process: Process) -> bool:
    if process.unit.startswith(_OUR_UNITS):
        return True
    if process.pid == 1:
        return _socket_active(evidence)
    words = process.command.split()
    return any(word.rsplit("/", 1)[-1] in ("meshd", "meshd.cli.main") for word in words[:4])


def _socket_active(evidence: Evidence) -> bool:
    unit = evidence.unit("mesh-gateway.socket")
    return unit is not None and unit.active == "active"
