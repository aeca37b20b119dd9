"""One request on its way: what is known of it, and what has been tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from meshd.gateway.ask import Ask
from meshd.gateway.client_stream import ClientStream
from meshd.gateway.exchange import Exchange, HeldBody
from meshd.gateway.onward import Onward
from meshd.gateway.openai_error import ApiError
from meshd.gateway.protocols import Protocol
from meshd.gateway.resumption import Resumption
from meshd.gateway.telemetry import OFF, Stage
from meshd.gateway.tokens import StreamTokens
from meshd.gateway.waiting_room import Waiter


def _nothing() -> None:
    """Nobody wants to know."""


@dataclass(slots=True)
class Job:
    """:ivar out: to the client, where it wants a stream.

    :ivar named: the model that the body asks for.
    :ivar draw: 64 random bits, for a request that belongs to no conversation.
    :ivar until_s: by the room's clock, how long it may wait for its model.
    :ivar back_s: likewise, when it goes back to the gateway that sent it on.
    :ivar seen: how much news there was when it last looked.
    :ivar member: id of the node whose gateway sent it on, "" for a client's own.
    :ivar onward: what that gateway said of it.
    :ivar failed: keys and places not to be tried again before there is news of them.
    :ivar lost: those that died with it before its client had anything, not to be tried again.
    :ivar deaths: how many engines died with it.
    :ivar attempts: how many engines it was sent to.
    :ivar exact_tokens: of the prompt, once an engine refused it for them.
    :ivar refused: how it did.
    :ivar signs: headers that say who answers.
    :ivar remote: another node has it now.
    :ivar first_token: called once, when the client is sent the first event with data.
    :ivar resumption: what of a stream may go on elsewhere; None where it may not.
    :ivar kept_bytes: held for it.
    :ivar waiter: its place among those that wait, if it had to.
    :ivar sent_back: how often another node let it wait, and then gave it back.
    :ivar broke_s: by the room's clock, when its stream lost an engine last.
    :ivar silent_s: likewise, since when no engine of its model answers, inf while one does.
    :ivar patient: it was given a moment after a target had failed.
    :ivar whole: what its client was sent ends at an event's end.
    """

    request: web.Request
    protocol: Protocol
    ask: Ask
    body: HeldBody
    exchange: Exchange
    out: ClientStream
    named: str
    draw: int
    until_s: float
    seen: int
    back_s: float = math.inf
    member: str = ""
    onward: Onward = field(default_factory=Onward)
    trace: Stage = OFF
    counted: StreamTokens = field(default_factory=StreamTokens)
    failed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    deaths: int = 0
    attempts: int = 0
    exact_tokens: int = 0
    refused: ApiError | None = None
    signs: dict[str, str] = field(default_factory=dict)
    remote: bool = False
    first_token: Callable[[], None] = _nothing
    resumption: Resumption | None = None
    kept_bytes: int = 0
    waiter: Waiter | None = None
    sent_back: int = 0
    silent_s: float = math.inf
    broke_s: float = 0.0
    patient: bool = False
    whole: bool = True

    @property
    def begun(self) -> bool:
        """Its client has a part of the answer, from here or from the gateway that sent it on."""
        return self.out.begun or self.onward.begun

    @property
    def weights(self) -> str:
        """Which content the answer has to go on with, "" while it may be any."""
        return self.resumption.weights if self.resumption and self.out.begun else ""
