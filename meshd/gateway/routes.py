"""The routing table: written by the brain, obeyed by the gateway, a few kilobytes of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

SCHEMA = 1


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Target:
    """One engine that serves a model. :ivar socket: path of its Unix socket on this node."""

    node: str
    socket: str
    ready: bool
    slots: int


@dataclass(frozen=True, slots=True)
class Route:
    """One model as clients see it.

    :ivar detail: for people: why it is not ready, or "".
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
class RoutingTable:
    """:ivar generation: counts up with every change by one brain."""

    schema: int = SCHEMA
    generation: int = 0
    node: str = "local"
    routes: tuple[Route, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024


class RoutingTableError(ValueError):
    """A routing table that must not be obeyed; the message says why, in one line."""


class _Head(msgspec.Struct):
    """Read before the rest, so that a newer schema is named as such and not as a type error."""

    schema: int


def encode(table: RoutingTable) -> bytes:
    """The table as the JSON that `decode` reads."""
    return msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n"


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
            if not target.socket.startswith("/") or "\0" in target.socket:
                raise RoutingTableError(
                    f"routing table: {route.model!r} has a target whose socket is not an "
                    f"absolute path: {target.socket!r}"
                )
