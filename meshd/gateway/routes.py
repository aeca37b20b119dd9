"""The routing table: written by the brain, obeyed by the gateway, a few kilobytes of JSON."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

import msgspec

from meshd.quality import Fidelity

SCHEMA = 1

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}", re.ASCII)


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    WAITING = "waiting"
    DRAINED = "drained"
    """The only nodes that could serve it are being drained: there is nothing to wait for."""


@dataclass(frozen=True, slots=True)
class Target:
    """One engine that serves a model, on this node or behind another node's peer door.

    :ivar node: its node's id. :ivar name: that node's name for people, "" for the same as the id.
    :ivar socket: path of its Unix socket on this node, "" when it is elsewhere.
    :ivar address: ``host:port`` of the other node's peer door, "" when it is here.
    :ivar suspect: its node is missed just now; used only when nothing better is there.
    :ivar weights: what `weights_of` makes of its content: equal for true replicas.
    :ivar busy: slots in use and requests waiting there, as its node last said.
    :ivar rtt_ms: to its node, 0 here or when not measured.
    :ivar context: tokens that one of its slots holds, 0 when not known.
    :ivar load_s: how long it takes to load by what was measured, 0 when nothing was.
    :ivar since_s: when this load began, by this machine's monotonic clock; 0 when it does not load.
    :ivar split: over several nodes: its engine ends whenever it loses one of them.
    :ivar shard: key of the expert shard that it serves, "" for the whole model.
    :ivar experts: that the shard keeps in each layer, of `experts_all`; 0 when not known.
    :ivar measured: what the shard loses, by kind of text.
    """

    node: str
    socket: str
    ready: bool
    slots: int
    address: str = ""
    name: str = ""
    suspect: bool = False
    weights: str = ""
    busy: int = 0
    rtt_ms: float = 0.0
    context: int = 0
    load_s: float = 0.0
    since_s: float = 0.0
    split: bool = False
    shard: str = ""
    experts: int = 0
    experts_all: int = 0
    measured: tuple[Fidelity, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it serves the model with all of its experts."""
        return not self.shard and not self.measured

    @property
    def key(self) -> str:
        """What tells engines apart: the socket here, node and address elsewhere."""
        return self.socket or f"{self.node}@{self.address}"


@dataclass(frozen=True, slots=True)
class Route:
    """One model as clients see it.

    :ivar detail: for people: why it is not ready, or "".
    :ivar quality: as `meshd.quality` writes it: what answers may lose at most.
    :ivar created_s: Unix time, as OpenAI's model object wants it.
    :ivar capabilities: of ``chat``, ``completion``, ``embeddings``, ``vision``, ``tools``.
    """

    model: str
    state: ModelState
    targets: tuple[Target, ...] = ()
    aliases: tuple[str, ...] = ()
    context: int = 0
    quality: str = "exact"
    capabilities: tuple[str, ...] = ()
    created_s: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """A node of the mesh that a client may turn to. :ivar address: of its peer door."""

    node: str
    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Front:
    """How this node's gateway meets its clients; other nodes are told nothing of it.

    :ivar hosts: names that a Host header may have beside those of this machine.
    :ivar origins: of web pages that may call it; "*" for all.
    :ivar certificate: PEM file for TLS on addresses other than loopback, "" for plain HTTP.
    :ivar key: PEM file with its key.
    :ivar wait_s: how long a request may wait until its model can take it; 0 for not at all.
    :ivar queue: requests that may wait at once.
    :ivar local_keys: clients of this machine need a key too, once there are keys.
    :ivar otlp: URL that takes traces over OTLP/HTTP, "" for none.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""
    wait_s: float = 120.0
    queue: int = 256
    local_keys: bool = False
    otlp: str = ""


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """:ivar generation: counts up with every change by one brain.

    :ivar peers: nodes with a peer door, this one included, nearest first.
    :ivar revoked: ids of nodes whose certificates are no longer honoured.
    :ivar tls: folder with ``ca.pem``, ``cert.pem`` and ``key.pem`` of this node in the mesh, ""
        where there is no mesh: then there is no peer door either.
    :ivar mesh: the mesh's id, "" without one.
    :ivar patience_ms: how long another node may leave a packet unanswered before its connection
        counts as broken: short within one network, longer over the internet.
    :ivar client: this node is none that others know of: requests go on as they came, so that the
        node that gets them counts them.
    """

    schema: int = SCHEMA
    generation: int = 0
    node: str = "local"
    routes: tuple[Route, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024
    mesh: str = ""
    tls: str = ""
    peers: tuple[Peer, ...] = ()
    revoked: tuple[str, ...] = ()
    patience_ms: int = 1000
    client: bool = False
    front: Front = field(default_factory=Front)


def weights_of(fingerprint: str, shard: str = "") -> str:
    """A name for a model's content, another one for each shard of it; "" when it is not known."""
    return f"{fingerprint}+{shard}" if fingerprint and shard else fingerprint


def source_of(weights: str) -> str:
    """The content that it is, or is a shard of."""
    return weights.partition("+")[0]


class RoutingTableError(ValueError):
    """A routing table that must not be obeyed; the message says why, in one line."""


class _Head(msgspec.Struct):
    """Read before the rest, so that a newer schema is named as such and not as a type error."""

    schema: int


def encode(table: RoutingTable) -> bytes:
    """The table as the JSON that `decode` reads, for files that people look into."""
    return msgspec.json.format(packed(table), indent=1) + b"\n"


def packed(table: RoutingTable) -> bytes:
    """The same in one line, for other nodes."""
    return msgspec.json.encode({"schema": table.schema, **_told(table)})


def _told(value: Any) -> dict[str, Any]:
    """A dataclass as what differs from its defaults, which so are part of the schema: most of a
    table is one.
    """
    told: dict[str, Any] = {}
    for one in fields(value):
        said = getattr(value, one.name)
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if said == default:
            continue
        if isinstance(said, tuple):
            told[one.name] = [_told(item) if is_dataclass(item) else item for item in said]
        else:
            told[one.name] = _told(said) if is_dataclass(said) else said
    return told


def decode(text: bytes) -> RoutingTable:
    """A table from JSON: strict about types, tolerant of fields that a newer brain adds.

    :raises RoutingTableError: not JSON, another schema, a wrong type, or contents that contradict
        themselves.
    """
    try:
        schema = msgspec.json.decode(text, type=_Head).schema
        if schema != SCHEMA:
            raise RoutingTableError(
                f"routing table has schema {schema}, this gateway reads {SCHEMA}"
            )
        table = msgspec.json.decode(text, type=RoutingTable)
    except msgspec.MsgspecError as error:
        raise RoutingTableError(f"routing table: {error}") from None
    except (RecursionError, UnicodeDecodeError):
        raise RoutingTableError("routing table: not a JSON document that meshd wrote") from None
    _check(table)
    return table


def _check(table: RoutingTable) -> None:
    if table.patience_ms <= 0:
        raise RoutingTableError("routing table: patience_ms must be more than 0")
    if table.front.wait_s < 0 or table.front.queue < 0:
        raise RoutingTableError("routing table: wait_s and queue must not be below 0")
    if table.max_body_bytes <= 0:
        raise RoutingTableError("routing table: max_body_bytes must be more than 0")
    seen: set[str] = set()
    for route in table.routes:
        if not route.model:
            raise RoutingTableError("routing table: a route has no model name")
        if route.model in seen:
            raise RoutingTableError(f"routing table: model {route.model!r} is listed twice")
        seen.add(route.model)
        for target in route.targets:
            _check_target(route.model, target)
    for peer in table.peers:
        if not dialable(peer.address):
            raise RoutingTableError(
                f"routing table: a peer's address is not host:port: {peer.address!r}"
            )


def _check_target(model: str, target: Target) -> None:
    if target.address and not target.socket:
        if not dialable(target.address):
            raise RoutingTableError(
                f"routing table: {model!r} has a target whose address is not host:port: "
                f"{target.address!r}"
            )
        return
    if not target.socket.startswith("/") or "\0" in target.socket:
        raise RoutingTableError(
            f"routing table: {model!r} has a target whose socket is not an "
            f"absolute path: {target.socket!r}"
        )


def dialable(address: str) -> bool:
    """Whether it is ``host:port`` with nothing in it that a URL would read as something else."""
    return _ADDRESS.fullmatch(address) is not None
