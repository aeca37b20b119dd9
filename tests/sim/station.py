"""One node's place in the simulated network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meshd.mesh.bus import Listener
from tests.sim.clock import Event
from tests.sim.traffic import Traffic

BACKLOG_MAX = 20_000


@dataclass(slots=True, eq=False)
class Station:
    """What the network knows of a node.

    :ivar running: its process lives. ``frozen``: all of it stands still (SIGSTOP). ``stalled``:
        only its event loop does, the session's threads live on.
    :ivar dark: a core whose threads keep its links but pass nothing on.
    :ivar session: counts its sessions: what was sent to an older one is lost.
    :ivar home: for a client, the core it is attached to; itself for a core; "" while it has none.
    :ivar seen: tokens that its listener was told are there.
    :ivar known: for a core: where each token is declared.
    """

    id: str
    index: int
    core: bool
    near_s: float
    listener: Listener | None = None
    running: bool = False
    frozen: bool = False
    stalled: bool = False
    dark: bool = False
    session: int = 0
    home: str = ""
    attached_s: float = 0.0
    next_core: int = 0
    pending: Event | None = None
    losing: Event | None = None
    clients: dict[str, Station] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    seen: dict[str, None] = field(default_factory=dict)
    backlog: list[tuple[Callable[..., Any], tuple[Any, ...]]] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    on_session: Callable[[bool], None] | None = None

    @property
    def awake(self) -> bool:
        return self.running and not self.frozen

    def tell(self, node: str, up: bool) -> None:
        """A token came or went, if that is news; never about itself."""
        if node == self.id or (node in self.seen) is up or self.listener is None or not self.awake:
            return
        if up:
            self.seen[node] = None
        else:
            del self.seen[node]
        if self.stalled:
            self.keep(self.listener.token, node, up)
        else:
            self.listener.token(node, up=up)

    def turn(self, *, up: bool) -> None:
        """Its session began or ended."""
        if self.on_session is None or not self.awake:
            return
        if self.stalled:
            self.keep(self.on_session, up)
        else:
            self.on_session(up)

    def hear(self, data: bytes) -> None:
        if self.listener is None or not self.awake:
            return
        self.traffic.receive(len(data))
        if self.stalled:
            self.keep(self.listener.heard, data)
        else:
            self.listener.heard(data)

    def keep(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Until the event loop turns again."""
        if len(self.backlog) < BACKLOG_MAX:
            self.backlog.append((action, arguments))

    def catch_up(self) -> None:
        waiting, self.backlog = self.backlog, []
        for action, arguments in waiting:
            if getattr(action, "__name__", "") == "token":
                node, up = arguments
                action(node, up=up)
            else:
                action(*arguments)
