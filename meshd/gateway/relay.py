"""The way of a request from the client to an engine and back, and to the next one when it fails."""

from __future__ import annotations

import asyncio
import math
import random
import time

from aiohttp import web

from meshd.gateway import headers, openai_error
from meshd.gateway.answer_quality import asked_quality, quality_said
from meshd.gateway.ask import read, session_of
from meshd.gateway.attempt import QUIET_S, Attempts
from meshd.gateway.choice import Choice, Chosen, Refusal, Refused
from meshd.gateway.choosing import Choosing
from meshd.gateway.client_limit import client_limit_s
from meshd.gateway.client_stream import ClientStream
from meshd.gateway.delivery import StreamBroken
from meshd.gateway.engine_call import EngineFailed
from meshd.gateway.engine_words import in_engine_words
from meshd.gateway.exchange import Exchange, HeldBody
from meshd.gateway.intake import Intake, Refuse
from meshd.gateway.job import Job
from meshd.gateway.metrics import GatewayMetrics, Resumption
from meshd.gateway.news import News
from meshd.gateway.onward import Onward, read_onward
from meshd.gateway.openai_error import ApiError
from meshd.gateway.protocols import Protocol
from meshd.gateway.request_body import BadBodyError, with_model
from meshd.gateway.routes import RoutingTable
from meshd.gateway.setbacks import Setbacks
from meshd.gateway.table_watch import TableWatch
from meshd.gateway.telemetry import OFF, Stage
from meshd.gateway.traffic_count import TrafficCount
from meshd.gateway.turns import Turns
from meshd.gateway.upstreams import Deadlines, Upstreams
from meshd.gateway.waiting_room import WaitingRoom
from meshd.gateway.waits import Waits

# While the mesh changes under it a request may meet a few targets that are gone already.
_MAX_ATTEMPTS = 6
# After a change of the table all streams that were to end with it have paused for long enough.
_SETTLED_S = 1.1 * QUIET_S
# Whoever sent a request on knows other nodes: by then one of them may have more room.
_HOP_WAIT_S = 10.0
# A node that gives a request back only after so long has let it wait for a slot.
_LONG_WAIT_S = _HOP_WAIT_S / 2


class Relay:
    """Its parts: who is asked (`Choosing`), waiting (`Turns`), asking (`Attempts`), and what
    becomes of an attempt that failed (`Setbacks`).
    """

    def __init__(
        self,
        watch: TableWatch,
        upstreams: Upstreams,
        metrics: GatewayMetrics,
        deadlines: Deadlines,
        news: News | None = None,
        traffic: TrafficCount | None = None,
    ) -> None:
        """:param news: of a new table, and of targets that answer again."""

        def table() -> RoutingTable | None:
            return watch.table

        self._table = table
        self._upstreams = upstreams
        self._metrics = metrics
        self._deadlines = deadlines
        self._news = news or News()
        self._traffic = traffic or TrafficCount()
        self._intake = Intake(deadlines.client_body)
        self._waits = Waits()
        self._attempts = Attempts(table, upstreams, deadlines, self._waits)
        self._choosing = Choosing(table, upstreams, self._attempts.speeds)
        self._turns = Turns(
            table, self._choosing, metrics, self._traffic, self._news, deadlines.news
        )
        self._setbacks = Setbacks(
            table, self._choosing, upstreams.suspicion, metrics, self.room.now_s
        )

    @property
    def room(self) -> WaitingRoom:
        """Where requests wait for their model."""
        return self._turns.room

    def stop(self) -> None:
        """End all running answers now, each with an error that says so."""
        self._waits.stop()
        self.room.stop()

    def table_changed(self, table: RoutingTable) -> None:
        """Let those wait no longer who wait for a target that is not to answer any more."""
        self.room.limit = table.front.queue
        self._waits.reconsider()
        # A stream that flowed just now may have been its last.
        asyncio.get_running_loop().call_later(_SETTLED_S, self._waits.reconsider)
        self.room.news()

    def answers_again(self) -> None:
        """A target that was passed over may be tried again."""
        self.room.news()

    async def handle(
        self,
        request: web.Request,
        protocol: Protocol,
        exchange: Exchange,
        trace: Stage = OFF,
        member: str = "",
    ) -> web.StreamResponse:
        """Answer one inference request.

        :param member: id of the node whose gateway sent it on.
        :raises Refuse: with the error to answer; nothing has been sent then.
        """
        table = self._table()
        if table is None:
            raise Refuse(openai_error.no_table())
        body = HeldBody(await self._intake.read(request, table.max_body_bytes), self._intake)
        job: Job | None = None
        try:
            job = self._job(request, protocol, table, body, exchange, trace, member)
            return await self._serve(job)
        except BadBodyError as error:
            raise Refuse(ApiError(400, error.message, param=error.param, code=error.code)) from None
        except Refuse as refusal:
            if job is None or not job.out.prepared:
                raise
            if exchange.hop and job.out.begun:
                return await job.out.end()  # whoever sent it on goes on with it elsewhere
            return await job.out.fail(refusal.error, whole=job.whole)
        finally:
            body.give_back()
            if job is not None:
                self._attempts.forget(job)
                if job.waiter is not None:
                    job.waiter.leave()
            self._traffic.answered(exchange)

    def _job(
        self,
        request: web.Request,
        protocol: Protocol,
        table: RoutingTable,
        body: HeldBody,
        exchange: Exchange,
        trace: Stage,
        member: str,
    ) -> Job:
        try:
            quality = asked_quality(request.headers)
        except ValueError as error:
            raise Refuse(openai_error.invalid_quality(str(error))) from None
        ask = read(protocol.path, body.data, session_of(request.headers), quality)
        body.data = in_engine_words(protocol.path, body.data, ask)
        onward = read_onward(request.headers) if exchange.hop else Onward()
        limit_s = min(table.front.wait_s, client_limit_s(request.headers))
        if exchange.hop:
            # Of a stream that broke, whoever has the client knows how long it may pause.
            limit_s = onward.patience_s if onward.begun else min(limit_s, onward.patience_s)
        return Job(
            request=request,
            protocol=protocol,
            ask=ask,
            body=body,
            exchange=exchange,
            out=ClientStream(request, protocol, exchange.request_id, self._deadlines.connect),
            named=ask.model,
            draw=random.getrandbits(64),
            until_s=self.room.now_s() + limit_s,
            back_s=self.room.now_s() + _HOP_WAIT_S if exchange.hop else math.inf,
            seen=self._news.count,
            trace=trace,
            member=member,
            onward=onward,
        )

    async def _serve(self, job: Job) -> web.StreamResponse:
        choice = self._pick(job)
        self._asked(job, choice)
        while True:
            if isinstance(choice, Chosen) and not self._turns.others_first(job, choice):
                answer = await self._try(job, choice)
                if answer is not None:
                    return answer
            else:
                await self._turns.wait(job, choice)
            if job.sent_back and self.room.now_s() >= job.until_s:
                raise self._turns.refusal(job, Refused(Refusal.FULL, choice.route))
            if job.attempts - job.sent_back >= _MAX_ATTEMPTS:
                raise self._turns.refusal(job, Refused(Refusal.UNREACHABLE, choice.route))
            choice = self._pick(job)

    def _pick(self, job: Job) -> Choice:
        with job.trace.stage("route") as stage:
            choice = self._choosing.pick(job)
            if isinstance(choice, Chosen):
                stage.note(node=choice.target.node, why=choice.why.value)
            else:
                stage.note(refused=choice.reason.value)
            return choice

    def _asked(self, job: Job, choice: Choice) -> None:
        """Count it where it enters the mesh."""
        route = choice.route
        if route is not None and route.model:
            job.exchange.model = route.model
        if job.exchange.hop:
            return
        if route is not None and route.model:
            self._traffic.asked(route.model, known=True)
        elif isinstance(choice, Chosen) or choice.reason is Refusal.UNKNOWN:
            self._traffic.asked(job.ask.model, known=False)

    async def _try(self, job: Job, choice: Chosen) -> web.StreamResponse | None:
        """:returns: None when another target, or the same one anew, is to be tried.

        :raises Refuse: there is nothing more to try.
        """
        target, model = choice.target, choice.route.model
        took_s: float | None = None
        began_s = time.monotonic()
        try:
            with (
                self._upstreams.request(model, target) as door,
                self._metrics.running(model, here=bool(target.socket)),
                job.trace.stage(
                    "engine",
                    node=target.node,
                    model=model,
                    attempt=job.attempts + 1,
                    resumed=job.out.begun,
                ) as stage,
            ):
                # Counted by now: the next in the line may look for another place.
                if job.waiter is not None:
                    job.waiter.took()
                job.attempts += 1
                job.exchange.model = model
                job.signs = self._signs(job, choice)
                if job.resumption is not None and job.out.begun:
                    job.resumption.towards(target.weights)
                answer = await self._attempts.run(job, choice, door, self._body(job, model), stage)
            took_s = time.monotonic() - began_s
            if job.resumption is not None and job.resumption.count:
                self._metrics.resumed(Resumption.RESUMED)
            return answer
        except EngineFailed as failed:
            if failed.answered and time.monotonic() - began_s >= _LONG_WAIT_S:
                self._setbacks.sent_back(job, choice)
            else:
                self._setbacks.failed(job, choice, failed)
            return None
        except StreamBroken as broken:
            return await self._setbacks.broken(job, choice, broken)
        finally:
            self.room.freed(model, took_s)

    @staticmethod
    def _signs(job: Job, choice: Chosen) -> dict[str, str]:
        target, route = choice.target, choice.route
        return {
            headers.NODE: target.name or target.node,
            headers.MODEL: route.model,
            headers.QUALITY: quality_said(target),
            headers.RESUMED: "yes" if job.out.begun else "no",
            headers.ATTEMPTS: str(job.attempts),
        }

    @staticmethod
    def _body(job: Job, model: str) -> bytes:
        if job.resumption is not None and job.out.begun and job.resumption.body is not None:
            return job.resumption.body
        if model and job.named != model:
            job.body.data = with_model(job.body.data, model)
            job.named = model
        return job.body.data
