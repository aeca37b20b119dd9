"""What is known of one request while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from meshd.gateway.gate import OPEN, Pass
from meshd.gateway.intake import Intake
from meshd.gateway.tokens import NO_TOKENS, Tokens


@dataclass(slots=True)
class Exchange:
    """Filled in on the way, read by the observer afterwards.

    :ivar model: the route's name, "" until it is known.
    :ivar started_s: monotonic.
    :ivar first_token_s: seconds from the start to a stream's first event with data, None before
        it and where the answer comes as a whole.
    :ivar queued_s: how long it waited for a model or a slot.
    :ivar pass_: what the client may.
    :ivar failure: kind of the last engine's failure, "" without one.
    :ivar hop: another gateway sent it on: it stays here, and is counted there.
    :ivar tokens: what the answer said of itself, so far.
    :ivar here: an engine of this node answers.
    :ivar quality: `answer_quality.EXACT` or `SHARD`, "" until an engine answers.
    :ivar answering: an answer's head has been made.
    """

    request_id: str
    model: str = ""
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    queued_s: float = 0.0
    pass_: Pass = OPEN
    failure: str = ""
    hop: bool = False
    tokens: Tokens = NO_TOKENS
    here: bool = False
    quality: str = ""
    answering: bool = False

    @property
    def key(self) -> str:
        """Name of the client's API key, "" without one."""
        return self.pass_.key

    def first_token(self) -> None:
        """Note the time, the first time."""
        if self.first_token_s is None:
            self.first_token_s = self.elapsed_s()

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s


class HeldBody:
    """A request's body, kept while it may have to be sent once more."""

    __slots__ = ("_intake", "_size_bytes", "data")

    def __init__(self, data: bytes, intake: Intake) -> None:
        self.data = data
        self._size_bytes = len(data)
        self._intake = intake

    def give_back(self) -> None:
        """Forget it; harmless when called again."""
        self._intake.give_back(self._size_bytes)
        self._size_bytes = 0
        self.data = b""
