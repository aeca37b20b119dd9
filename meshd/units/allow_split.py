"""What the root hand lets a split's two ends be told: ports, node ids and folders. Pure.

A guard carries whatever the admitted node sends to the port behind it, so that port has to be an
rpc-server's, and the door one of those that are for splits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from meshd.config import split_ports
from meshd.paths import Paths
from meshd.units import flags
from meshd.units.flags import Value
from meshd.units.spec import MESHD, EngineSpec, GpuAccess

_NODE = re.compile(r"[a-z2-7]{16}")
_TRIPLE = re.compile(r"[0-9]{1,5}(\.[0-9]{1,5}){2}")
_ADDRESS = re.compile(
    r"(\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]|[A-Za-z0-9][A-Za-z0-9._-]*):[0-9]{1,5}"
)
_LOOPBACKS = ("127.0.0.1", "localhost", "[::1]")
_ENDS = {"member": flags.GUARD_MEMBER, "host": flags.GUARD_HOST}

KINDS = frozenset((*flags.GUARD_MEMBER.values(), *flags.GUARD_HOST.values())) - {Value.NUMBER} | {
    Value.ENDPOINTS,
    Value.OVERRIDE,
    Value.SERVER_PORT,
}


@dataclass(frozen=True, slots=True)
class SplitRules:
    """:ivar ports: the first of each run of ports that may be used (`config.split_ports`).

    :ivar hosts: where other nodes may reach this one, as in an address, e.g. ``[::]``.
    """

    paths: Paths
    ports: frozenset[int]
    hosts: frozenset[str]


def fits(kind: Value, value: str, name: str, rules: SplitRules) -> bool:
    """:param kind: of `KINDS`. :param name: the instance."""
    match kind:
        case Value.OVERRIDE:
            return value in flags.OVERRIDES
        case Value.ENDPOINTS:
            return all(_loopback(one, split_ports.ways, rules) for one in value.split(","))
        case Value.FRONT:
            return _loopback(value, split_ports.servers, rules)
        case Value.SERVER_PORT:
            return _in(value, split_ports.servers, rules)
        case Value.DOOR:
            host, _, port = value.rpartition(":")
            return host in rules.hosts and _in(port, split_ports.doors, rules)
        case Value.WAY:
            local, _, rest = value.partition("=")
            node, _, address = rest.partition("@")
            return (
                _loopback(local, split_ports.ways, rules)
                and _NODE.fullmatch(node) is not None
                and _ADDRESS.fullmatch(address) is not None
            )
        case Value.NODE:
            return _NODE.fullmatch(value) is not None
        case Value.TRIPLE:
            return _TRIPLE.fullmatch(value) is not None
        case Value.TLS:
            return value == str(rules.paths.tls)
        case Value.STATUS:
            return value == str(rules.paths.guard_socket(name))
    raise ValueError(f"{kind} is nothing of a split")


def guard_flags(spec: EngineSpec) -> dict[str, Value] | None:
    """What may follow a guard's first words; None when those are not what they should be."""
    if spec.argv[:3] != (MESHD, "guard", spec.name) or len(spec.argv) < 4:
        return None
    return _ENDS.get(spec.argv[3])


def guard_refusals(spec: EngineSpec, given: Iterable[Value]) -> Iterator[str]:
    """What else a guard may not ask for. :param given: kinds of values on its command line."""
    wanted = set((guard_flags(spec) or {}).values())
    for missing in sorted(wanted.difference(given)):
        yield f"{missing} is missing"
    if spec.reads or spec.environment or spec.gpu is not GpuAccess.NONE:
        yield "a guard reads no models, has no variables and needs no GPU"


def _loopback(endpoint: str, ports: Callable[[int], range], rules: SplitRules) -> bool:
    host, _, port = endpoint.rpartition(":")
    return host in _LOOPBACKS and _in(port, ports, rules)


def _in(port: str, ports: Callable[[int], range], rules: SplitRules) -> bool:
    if not re.fullmatch(r"[0-9]{1,5}", port):
        return False
    return any(int(port) in ports(first) for first in rules.ports)
