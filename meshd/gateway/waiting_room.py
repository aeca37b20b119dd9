"""Where requests wait until their model can take them.

One relay loop uses it so::

    waiter = None
    try:
        while True:
            choice = choose(...)                       # Refused: NOT_READY, UNREACHABLE or FULL
            if refused or room.others_first(model, waiter):
                waiter = waiter or room.enter(model, key, until_s=..., could=...)
                await waiter.turn(tell)
                continue                               # choose anew, with the newest table
            with upstreams.request(...):               # counted in flight from here on
                if waiter:
                    waiter.took()
                ...
    finally:
        if waiter:
            waiter.leave()

There is no thundering herd: of one model one waiter at a time is called, the next when that one has
taken its place or found nothing. Nothing may be awaited between `turn` and `took`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace

from meshd.gateway.eta import Eta, Service, eta
from meshd.gateway.fair_queue import Admission, FairQueue, Ticket, admission
from meshd.gateway.progress import progress
from meshd.gateway.routes import Route, Target
from meshd.gateway.wait_ends import Full, Stopping, TooLong

FIRST_WORD_S = 2.0
"""After which a client that waits is told so for the first time."""

WORD_S = 5.0
"""Between two such words."""

_RETRY_LEAST_S = 1.0

Tell = Callable[[str], Awaitable[None]]
"""Sends one comment to the client that waits."""

Usable = Callable[[Route], tuple[Target, ...]]
"""Which of a route's targets may serve a request."""


def _all_targets(route: Route) -> tuple[Target, ...]:
    return route.targets


class _Line:
    """What waits for one model.

    :ivar called: whose turn it is just now, until it says what came of it.
    :ivar events: counts up with everything that may help somebody.
    """

    __slots__ = ("called", "events", "queue")

    def __init__(self) -> None:
        self.queue: FairQueue[Waiter] = FairQueue()
        self.called: Waiter | None = None
        self.events = 0


class Waiter:
    """One request that waits, or has waited.

    :ivar model: the route's name. :ivar until_s: by the room's clock.
    :ivar kind: as for `WaitingRoom.enter`, as things stand now.
    :ivar entered_s: when it first began to wait, here or elsewhere, by the room's clock.
    """

    __slots__ = (
        "_away", "_called_at", "_could", "_failure", "_returned", "_room", "_tell_at_s", "_ticket",
        "_usable", "_wake", "entered_s", "key", "kind", "model", "priority", "until_s",
    )  # fmt: skip

    def __init__(
        self,
        room: WaitingRoom,
        model: str,
        key: str,
        priority: int,
        until_s: float,
        could: Callable[[], bool],
        kind: Hashable,
        waited_s: float,
        usable: Usable,
    ) -> None:
        self.model = model
        self.key = key
        self.priority = priority
        self.until_s = until_s
        self.entered_s = room.now_s() - waited_s
        self._room = room
        self._could = could
        self._usable = usable
        self.kind = kind
        self._ticket: Ticket[Waiter] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._away = False
        # By its line's count of events; it found nothing then.
        self._called_at = -1
        # From a turn; still called then means that it is about to say what came of it.
        self._returned = False
        self._tell_at_s = room.now_s() + FIRST_WORD_S

    async def turn(self, tell: Tell | None = None, back_s: float = math.inf) -> None:
        """Returns when this request is the next, and something has changed that may help it.

        A request that finds nothing nevertheless calls it again and keeps its place. One that has
        been served and needs another engine does too, and goes before all others.

        :param tell: called with a comment now and again; whatever it raises comes out here.
        :param back_s: by the room's clock; by then others may be asked, however long it may wait.
        :raises TooLong: not before `until_s`, or not by `back_s`.
        :raises Stopping: the gateway is being stopped.
        """
        room = self._room
        room._resume(self)
        if room._line(self.model).called is not self:
            self._give_up_early()
        while room._line(self.model).called is not self:
            if self._failure is not None:
                raise self._failure
            now_s = room.now_s()
            if now_s >= min(self.until_s, back_s):
                raise TooLong(room.eta(self).seconds)
            if tell is not None and now_s >= self._tell_at_s:
                self._tell_at_s = now_s + WORD_S
                # A client that does not read must not hold up those behind it.
                self._away = True
                try:
                    await tell(self.progress())
                finally:
                    self._away = False
                room._look(self.model)
                continue
            until_s = min(self.until_s, back_s)
            if tell is not None:
                until_s = min(until_s, self._tell_at_s)
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait((self._wake,), timeout=until_s - now_s)
            finally:
                self._wake = None
        self._returned = True

    def took(self) -> None:
        """It has a place, counted by now: the next one may look for another."""
        self._room._gone(self, served=True)

    def leave(self) -> None:
        """It waits no longer, for whatever reason. Harmless when called again."""
        self._room._gone(self, served=False)

    def progress(self) -> str:
        """For the client: an SSE comment without the end of its line."""
        room = self._room
        route = room._route(self.model, self._usable)
        return progress(self.model, route, room.eta(self), room.ahead(self), room.now_s())

    def _give_up_early(self) -> None:
        expected = self._room.eta(self)
        left_s = self.until_s - self._room.now_s()
        if expected.seconds is not None and not expected.overdue and expected.seconds > left_s:
            raise TooLong(expected.seconds)

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class WaitingRoom:
    """Of one gateway process, for all models.

    :ivar limit: requests that may wait at once (`routes.Front.queue`).
    """

    def __init__(
        self,
        route: Callable[[str], Route | None],
        *,
        limit: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param route: of a model by its name, in the newest table.

        :param clock: monotonic seconds, the same as of `Target.since_s`.
        """
        self.limit = limit
        self.route = route
        self.now_s = clock
        self._lines: dict[str, _Line] = {}
        self._services: dict[str, Service] = {}
        self._held: dict[str, int] = {}
        self._waiting = 0
        self._stopping = False

    # -- for the relay --------------------------------------------------------------------------

    def enter(
        self,
        model: str,
        key: str = "",
        priority: int = 0,
        *,
        until_s: float,
        could: Callable[[], bool],
        kind: Hashable = None,
        waited_s: float = 0.0,
        first: bool = False,
        usable: Usable = _all_targets,
    ) -> Waiter:
        """Begin to wait; `leave` must follow, whatever happens.

        :param model: the route's name.
        :param key: what is treated fairly: the API key's name, "" for none, "node:ID/NAME" for one
            of another gateway.
        :param until_s: by the room's clock; never later than its client waits.
        :param could: whether `choose` would find a target now; asked often.
        :param kind: requests of one kind can be helped by the same (``hop`` or not, context, ...);
            where one of them cannot, the others are not asked.
        :param waited_s: so long it has waited elsewhere already, which counts for its place.
        :param first: before all others: it has been served, and lost that. There are never more
            of these than requests that ran, so there is always room for it.
        :param usable: of a route, the targets that the request may have at all.
        :raises Full: it may not.
        """
        may = admission(self._waiting, self._held.get(key, 0), self.limit)
        if may is not Admission.ENTER and not first:
            raise Full(self._retry_s(model), own=may is Admission.KEY_FULL)
        waiter = Waiter(self, model, key, priority, until_s, could, kind, waited_s, usable)
        self._add(waiter, waiter.entered_s, first=first)
        self._look(model)
        return waiter

    def others_first(self, model: str, waiter: Waiter | None = None) -> bool:
        """Whether somebody else waits whose turn comes before this one's.

        A newcomer that could go ahead enters all the same: it is called at once where nobody of
        those that wait can be helped.
        """
        line = self._lines.get(model)
        if line is None or not len(line.queue):
            return False
        return waiter is None or line.called is not waiter

    def freed(self, model: str, took_s: float | None = None) -> None:
        """A request has ended, so its slot is free. :param took_s: how long it was at its engine;
        None for one that failed.
        """
        if took_s is not None:
            self._services[model] = self._services.get(model, Service()).after(took_s)
        self._tell(model)

    def news(self) -> None:
        """A new table, or a suspect answers again."""
        for model in [*self._services]:
            if self.route(model) is None and model not in self._lines:
                del self._services[model]
        for model in [*self._lines]:
            self._refuse_hopeless(model)
            self._tell(model)

    def stop(self) -> None:
        """End all waits now, and each later one at once."""
        self._stopping = True
        for line in self._lines.values():
            for ticket in line.queue:
                ticket.item._fail(Stopping())

    # -- for whoever reports --------------------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """How many wait, by model."""
        return {model: len(line.queue) for model, line in self._lines.items() if len(line.queue)}

    def ahead(self, waiter: Waiter) -> int:
        """How many go before it."""
        line = self._lines.get(waiter.model)
        ticket = waiter._ticket
        return line.queue.ahead(ticket) if line and ticket else 0

    def eta(self, waiter: Waiter) -> Eta:
        """When it may be served."""
        return self._eta(waiter.model, self.ahead(waiter), waiter._usable)

    # -- inside ---------------------------------------------------------------------------------

    def _line(self, model: str) -> _Line:
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = _Line()
        return line

    def _route(self, model: str, usable: Usable) -> Route | None:
        route = self.route(model)
        if route is None:
            return None
        targets = usable(route)
        return route if len(targets) == len(route.targets) else replace(route, targets=targets)

    def _eta(self, model: str, ahead: int, usable: Usable = _all_targets) -> Eta:
        route = self._route(model, usable)
        if route is None:
            return Eta()
        return eta(route, ahead, self._services.get(model, Service()), self.now_s())

    def _retry_s(self, model: str) -> float:
        line = self._lines.get(model)
        expected = self._eta(model, len(line.queue) if line else 0).seconds
        return max(_RETRY_LEAST_S, expected or 0.0)

    def _add(self, waiter: Waiter, since_s: float, *, first: bool) -> None:
        queue = self._line(waiter.model).queue
        # The line may be another than the one that called it last, and count from 0 again.
        waiter._called_at = -1
        waiter._failure = Stopping() if self._stopping else None
        waiter._ticket = queue.add(waiter, waiter.key, waiter.priority, now_s=since_s, first=first)
        self._waiting += 1
        self._held[waiter.key] = self._held.get(waiter.key, 0) + 1

    def _resume(self, waiter: Waiter) -> None:
        """It waits on, after its turn brought nothing, or an engine failed it."""
        line = self._line(waiter.model)
        if waiter._ticket is None:
            self._add(waiter, self.now_s(), first=True)
            self._look(waiter.model)
        elif line.called is waiter and waiter._returned:
            line.called = None
            self._look(waiter.model)
        waiter._returned = False

    def _gone(self, waiter: Waiter, *, served: bool) -> None:
        ticket, waiter._ticket = waiter._ticket, None
        line = self._lines.get(waiter.model)
        if ticket is None or line is None:
            return
        if served:
            line.queue.serve(ticket, self.now_s())
        else:
            line.queue.remove(ticket)
        self._waiting -= 1
        self._held[waiter.key] -= 1
        if not self._held[waiter.key]:
            del self._held[waiter.key]
        if line.called is waiter:
            line.called = None
            self._look(waiter.model)
        if not len(line.queue):
            self._lines.pop(waiter.model, None)

    def _tell(self, model: str) -> None:
        line = self._lines.get(model)
        if line is not None:
            line.events += 1
            self._look(model)

    def _look(self, model: str) -> None:
        """Call the next that can be helped, unless one is called already: it calls the next."""
        line = self._lines.get(model)
        if line is None or line.called is not None:
            return
        helpless: set[Hashable] = set()

        def fits(waiter: Waiter) -> bool:
            if waiter._away or waiter._failure or waiter._called_at >= line.events:
                return False
            if waiter.kind in helpless:
                return False
            if waiter._could():
                return True
            helpless.add(waiter.kind)
            return False

        ticket = line.queue.next(fits)
        if ticket is not None:
            line.called = ticket.item
            ticket.item._called_at = line.events
            ticket.item._rouse()

    def _refuse_hopeless(self, model: str) -> None:
        """Those whose time will be up before the load can be done need not wait for that."""
        for ticket in self._line(model).queue:
            expected = self._eta(model, 0, ticket.item._usable)
            if expected.seconds is None or not expected.loading or expected.overdue:
                continue
            if self.now_s() + expected.seconds > ticket.item.until_s:
                ticket.item._fail(TooLong(expected.seconds))
