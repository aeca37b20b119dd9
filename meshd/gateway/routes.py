"""The routing table: written by the brain, obeyed by the gateway, a few kilobytes of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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
