"""One stream that may have to go on elsewhere: what was sent of it, and how to ask for the rest."""

from __future__ import annotations

from meshd.gateway.continuation import Continuation, Plan, continuation
from meshd.gateway.splice import Splice
from meshd.gateway.transcript import Transcript


class Resumption:
    """:ivar weights: what the answer is made with; only others of its source may go on with it.

    :ivar body: of the continuation's request, None while the first engine answers.
    :ivar count: how often the stream was taken over.
    """

    __slots__ = ("_original", "_replay", "_splice", "_transcript", "body", "count", "weights")

    def __init__(self, path: str, body: bytes, weights: str) -> None:
        """:param body: the request as the first engine got it."""
        self.weights = weights
        self.body: bytes | None = None
        self.count = 0
        self._original = body
        self._replay = True
        self._transcript = Transcript(path)
        self._splice: Splice | None = None

    def sent(self, events: bytes) -> None:
        """The client was sent these whole events."""
        self._transcript.feed(events)

    def through(self, events: bytes) -> bytes:
        """What of an engine's whole events the client gets.

        :raises BrokenSpliceError: the engine does not go on with this stream.
        """
        return events if self._splice is None else self._splice.feed(events)

    def towards(self, weights: str) -> None:
        """The next engine has these weights. Others do not repeat what was said, so it goes on
        from the text, if it can.
        """
        if weights == self.weights:
            return
        self.weights = weights
        if self._splice is None or not self._replay:
            return
        self._replay = False
        told = self._transcript.told
        plan = continuation(self._original, told, replay=False)
        if isinstance(plan, Continuation):
            self.body = plan.body
            self._splice = Splice(told, plan)

    def plan(self, *, spent_s: float, diverged: bool = False) -> Plan:
        """How to go on; `body` and `through` follow it.

        :param spent_s: since the first event.
        :param diverged: a replay said something else than what was sent.
        """
        self._replay = self._replay and not diverged
        told = self._transcript.told
        plan = continuation(self._original, told, spent_s=spent_s, replay=self._replay)
        if isinstance(plan, Continuation):
            self.body = plan.body
            self._splice = Splice(told, plan)
        return plan
