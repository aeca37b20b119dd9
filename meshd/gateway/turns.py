"""Lets a request wait until its model can take it, and says why it may not."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from meshd.gateway import openai_error, refusals
from meshd.gateway.answer_quality import good_enough
from meshd.gateway.choice import Choice, Chosen, Refusal, Refused
from meshd.gateway.choosing import Choosing
from meshd.gateway.client_limit import client_limit_s
from meshd.gateway.intake import Refuse
from meshd.gateway.job import Job
from meshd.gateway.metrics import GatewayMetrics, Resumption
from meshd.gateway.news import News
from meshd.gateway.openai_error import ApiError
from meshd.gateway.routes import Route, RoutingTable
from meshd.gateway.traffic_count import TrafficCount
from meshd.gateway.wait_ends import Full, Stopping, TooLong
from meshd.gateway.waiting_room import WaitingRoom

RESUME_WAIT_S = 15.0
"""For another engine that goes on with a stream, where no replica is ready; and for any answer
from a model whose engines all fall silent. A dead node is replaced sooner, or the table says more.
"""


class Turns:
    """:ivar room: where requests wait for their model."""

    def __init__(
        self,
        table: Callable[[], RoutingTable | None],
        choosing: Choosing,
        metrics: GatewayMetrics,
        traffic: TrafficCount,
        news: News,
        patience_s: float,
    ) -> None:
        """:param patience_s: for a change after a target failed, however short the wait may be."""
        self.room = WaitingRoom(choosing.route_of)
        self._table = table
        self._choosing = choosing
        self._metrics = metrics
        self._traffic = traffic
        self._news = news
        self._patience_s = patience_s

    def others_first(self, job: Job, choice: Chosen) -> bool:
        """Whether somebody waits for that model whose turn comes before this one's."""
        model = choice.route.model
        waiter = job.waiter if job.waiter is not None and job.waiter.model == model else None
        return self.room.others_first(model, waiter)

    async def wait(self, job: Job, choice: Choice) -> None:
        """Until it is this request's turn, and something has changed that may help it.

        :raises Refuse: it may not wait, or not so long.
        """
        route = choice.route
        if isinstance(choice, Refused) and not refusals.may_change(choice, job):
            raise self.refusal(job, choice)
        assert route is not None
        waiting = Refused(Refusal.FULL, route) if isinstance(choice, Chosen) else choice
        began_s = self.room.now_s()
        if waiting.reason is not Refusal.UNREACHABLE:
            job.silent_s = math.inf
        elif job.silent_s == math.inf:
            job.silent_s = began_s
        if not job.patient and job.attempts and not job.out.begun and not job.exchange.hop:
            # One just failed, and the mesh moves on: a moment's patience finds another.
            job.patient = True
            left_s = client_limit_s(job.request.headers) - job.exchange.elapsed_s()
            job.until_s = max(job.until_s, began_s + min(self._patience_s, left_s))
        try:
            with (
                job.trace.stage("queue", model=route.model),
                self._metrics.waiting(route.model).track_inprogress(),
            ):
                await self._turn(job, route, self._until_s(job, waiting))
        except Full as full:
            raise self._missed(
                job, waiting, refusals.no_room(full, route.model, job.exchange.key)
            ) from None
        except TooLong as late:
            if self._says_more(job, waiting):
                return
            error = refusals.too_long(late, waiting, self._newest())
            raise self._missed(job, waiting, error) from None
        except Stopping:
            raise Refuse(openai_error.stopping()) from None
        finally:
            job.exchange.queued_s += self.room.now_s() - began_s
        if self._news.count != job.seen:
            job.seen = self._news.count
            job.failed.clear()

    def refusal(self, job: Job, choice: Refused) -> Refuse:
        """What to answer a request that is not served, for this reason."""
        if choice.reason is Refusal.TOO_LONG and job.refused is not None:
            return Refuse(job.refused)
        allows = job.exchange.pass_.allows
        error = openai_error.refused(choice, job.ask.model, self._newest(), allows)
        return self._missed(job, choice, error)

    @staticmethod
    def _until_s(job: Job, choice: Refused) -> float:
        """A stream that broke waits for a slot as any request, but not as long for a replica that
        may never be: its client has seen nothing new since.
        """
        if job.out.begun and choice.reason is not Refusal.FULL:
            return min(job.until_s, job.broke_s + RESUME_WAIT_S)
        return min(job.until_s, job.silent_s + RESUME_WAIT_S)

    def _says_more(self, job: Job, choice: Refused) -> bool:
        """Whether it waited for engines that fell silent, and has something better to wait for."""
        if choice.reason is not Refusal.UNREACHABLE or self.room.now_s() >= job.until_s:
            return False
        now = self._choosing.pick(job)
        return isinstance(now, Chosen) or now.reason is not Refusal.UNREACHABLE

    async def _turn(self, job: Job, route: Route, until_s: float) -> None:
        if job.waiter is not None and job.waiter.model != route.model:
            job.waiter.leave()
            job.waiter = None
        passed, kind = job.exchange.pass_, _kind(job, route)
        if job.waiter is None:
            job.waiter = self.room.enter(
                route.model,
                f"node:{job.member}/{job.onward.key}" if job.member else passed.key,
                job.onward.priority if job.member else passed.priority,
                until_s=until_s,
                could=lambda: self._could(job),
                kind=kind,
                waited_s=job.onward.waited_s,
                first=job.begun,
                usable=lambda route: good_enough(route, job.ask.quality),
            )
        job.waiter.until_s, job.waiter.kind = until_s, kind
        back_s = math.inf if job.begun else job.back_s
        await job.waiter.turn(job.out.comment if job.ask.stream else None, back_s)

    def _could(self, job: Job) -> bool:
        anew = self._news.count != job.seen
        choice = self._choosing.pick(job, anew=anew)
        if isinstance(choice, Refused) and choice.reason is Refusal.QUALITY:
            # Nothing that it would take is left: it is called to be told so.
            return not refusals.may_change(choice, job)
        return isinstance(choice, Chosen)

    def _newest(self) -> RoutingTable:
        return self._table() or RoutingTable()

    def _missed(self, job: Job, choice: Refused, error: ApiError) -> Refuse:
        ours = choice.reason in refusals.OURS
        if job.out.begun:
            self._metrics.resumed(Resumption.NO_REPLICA)
            why = "none with the same weights could take it in time"
            if choice.reason is Refusal.QUALITY:
                why = "what is left is not as good as was asked for"
            return Refuse(openai_error.not_resumed(job.exchange.model, why))
        if job.exchange.hop and (ours or choice.reason is Refusal.QUALITY):
            return Refuse(openai_error.moved(job.ask.model), lost=bool(job.lost))
        if ours and not job.exchange.hop:
            route = choice.route
            self._traffic.missed(route.model if route else job.ask.model, known=route is not None)
        return Refuse(error)


def _kind(job: Job, route: Route) -> Hashable:
    """All that `Choosing.pick` makes of this request, beside how things stand."""
    asked: Hashable = None
    if job.ask.model not in (route.model, *route.aliases):
        # `auto` may be helped by another model as well.
        asked = job.ask.model, job.ask.needs, job.exchange.key
    avoided = frozenset(job.failed | job.lost)
    return (
        job.exchange.hop,
        job.exact_tokens,
        job.weights,
        job.ask.quality,
        avoided,
        job.seen if avoided else 0,
        asked,
    )
