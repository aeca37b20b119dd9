"""Finds an engine for a request, and another one while none has answered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from meshd.gateway import headers, openai_error
from meshd.gateway.choice import NEEDS, Chosen, Refusal, Refused, choose, find_route, place
from meshd.gateway.delivery import Delivery
from meshd.gateway.engine_call import EngineFailed, broken, call
from meshd.gateway.engine_http.answer import Answer, AnswerBroken
from meshd.gateway.exchange import Exchange, HeldBody
from meshd.gateway.intake import Intake, Refuse
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.news import News
from meshd.gateway.openai_error import ApiError
from meshd.gateway.request_body import BadBodyError, model_of, with_model
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.table_watch import TableWatch
from meshd.gateway.traffic_count import TrafficCount
from meshd.gateway.upstreams import Deadlines, Upstreams
from meshd.gateway.waits import Wait, Waits

# A request that kills engines must not go through all replicas.
_MAX_ENGINES_LOST = 2
# While the mesh changes under it a request may meet a few targets that are gone already.
_MAX_ATTEMPTS = 6


@dataclass(slots=True)
class _Tries:
    """What one request has seen.

    :ivar failed: keys and places not to be tried again before there is news of them.
    :ivar lost: those that died with it, not to be tried again at all.
    :ivar patient_until: by the loop's clock, once it waits for news.
    """

    failed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    count: int = 0
    patient_until: float | None = None


class Relay:
    """The way of a request from the client to an engine and back."""

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
        self._watch = watch
        self._upstreams = upstreams
        self._metrics = metrics
        self._deadlines = deadlines
        self._news = news or News()
        self._traffic = traffic or TrafficCount()
        self._intake = Intake(deadlines.client_body)
        self._waits = Waits()
        self._delivery = Delivery(deadlines, self._waits, self._note, upstreams.suspicion.suspect)

    def stop(self) -> None:
        """End all running answers now, each with an error that says so."""
        self._waits.stop()

    def table_changed(self) -> None:
        """Let those wait no longer who wait for a target that is not to answer any more."""
        self._waits.reconsider()

    async def handle(
        self, request: web.Request, path: str, exchange: Exchange
    ) -> web.StreamResponse:
        """Answer one inference request.

        :param path: of the engine's endpoint.
        :raises Refuse: with the error to answer; nothing has been sent then.
        """
        table = self._watch.table
        if table is None:
            raise Refuse(openai_error.no_table())
        body = HeldBody(await self._intake.read(request, table.max_body_bytes), self._intake)
        try:
            return await self._route(request, path, table, body, exchange)
        except BadBodyError as error:
            raise Refuse(ApiError(400, error.message, param=error.param, code=error.code)) from None
        finally:
            body.give_back()
            self._traffic.answered(exchange)

    async def _route(
        self,
        request: web.Request,
        path: str,
        table: RoutingTable,
        body: HeldBody,
        exchange: Exchange,
    ) -> web.StreamResponse:
        model = model_of(body.data)
        if not exchange.hop:
            route = find_route(table, model)
            self._traffic.asked(route.model if route else model, known=route is not None)
        tries = _Tries()
        while True:
            seen = self._news.count
            choice = choose(
                table,
                model,
                self._upstreams.in_flight,
                self._upstreams.suspects | tries.failed | tries.lost,
                needs=NEEDS.get(path, frozenset()),
                here_only=exchange.hop,
            )
            if isinstance(choice, Refused) and table.client and not tries.count:
                choice = self._member(choice, table) or choice
            if isinstance(choice, Refused) or tries.count >= _MAX_ATTEMPTS:
                route = choice.route
                exchange.model = route.model if route else ""
                hopes = isinstance(choice, Refused) and _may_change(choice, tries, exchange)
                if hopes and await self._changed(seen, tries):
                    tries.failed.clear()
                    table = self._watch.table or table
                    continue
                raise self._refusal(choice, model, table, exchange, tries)
            exchange.model = choice.route.model
            if exchange.model and model != exchange.model:
                model = exchange.model
                body.data = with_model(body.data, model)
            tries.count += 1
            try:
                return await self._attempt(request, path, choice, body, exchange, table)
            except EngineFailed as failed:
                self._failed(exchange, choice, failed, tries)
                if len(tries.lost) >= _MAX_ENGINES_LOST:
                    raise Refuse(openai_error.engine_lost(model)) from None
            table = self._watch.table or table

    async def _attempt(
        self,
        request: web.Request,
        path: str,
        choice: Chosen,
        body: HeldBody,
        exchange: Exchange,
        table: RoutingTable,
    ) -> web.StreamResponse:
        target, model = choice.target, exchange.model
        remote = not target.socket
        head = headers.to_engine(
            request.headers, exchange.request_id, hop=remote and not table.client
        )
        in_flight = self._metrics.running(model, here=not remote)
        with self._upstreams.request(model, target) as door, in_flight.track_inprogress():

            def hopeless() -> bool:
                return remote and self._has_moved(model, target)

            answer: Answer | None = None
            try:
                try:
                    async with self._waits.within(self._deadlines.answer, hopeless) as wait:
                        answer = await call(door, path, body.data, head)
                        first = await self._first(answer, wait) if _streams(answer) else b""
                        wait.hoped()
                except TimeoutError:
                    if wait.given_up:
                        raise EngineFailed("moved", lost=False) from None
                    raise Refuse(self._delivery.too_late(exchange)) from None
                body.give_back()  # there is no retry from here on
                exchange.here = not remote
                if _streams(answer):
                    return await self._delivery.stream(request, target, answer, first, exchange)
                return await self._delivery.whole(target, answer, exchange)
            finally:
                if answer is not None:
                    answer.close()

    def _member(self, choice: Refused, table: RoutingTable) -> Chosen | None:
        """For a client of the mesh a member has the last word, and counts who found nothing."""
        if choice.reason not in (Refusal.UNKNOWN, Refusal.NOT_READY):
            return None
        for peer in table.peers:
            target = Target(peer.node, "", True, 1, address=peer.address)
            if target.key not in self._upstreams.suspects:
                # An unknown name is nobody's: no metric gets a label of it.
                return Chosen(choice.route or Route("", ModelState.WAITING), target)
        return None

    async def _first(self, answer: Answer, wait: Wait) -> bytes:
        """The first piece of a stream. Until it came, the client has got nothing.

        :raises EngineFailed: it does not come.
        """
        self._waits.extend(wait, self._deadlines.idle)
        try:
            piece = await answer.piece()
        except AnswerBroken as error:
            raise broken(error) from None
        if not piece:
            raise EngineFailed("reset", lost=True)
        return piece

    def _has_moved(self, model: str, target: Target) -> bool:
        """Whether the newest table says that this target will not answer, or others better."""
        table = self._watch.table
        route = find_route(table, model) if table else None
        if table is None:
            return False
        targets = route.targets if route else ()
        listed = next((one for one in targets if one.key == target.key), None)
        if listed is not None and not listed.suspect:
            return False
        if listed is None and all(peer.node != target.node for peer in table.peers):
            return True  # its node is gone
        # It may yet answer: missed just now, or about to unload when it is done.
        others = self._upstreams.suspects | {target.key, place(model, target)}
        choice = choose(table, model, self._upstreams.in_flight, others)
        return isinstance(choice, Chosen) and not choice.target.suspect

    def _failed(
        self, exchange: Exchange, choice: Chosen, failed: EngineFailed, tries: _Tries
    ) -> None:
        self._note(exchange, failed.kind)
        where = place(choice.route.model, choice.target)
        if failed.answered:
            self._upstreams.suspicion.lacks(where)
        elif failed.kind != "moved":
            self._upstreams.suspicion.suspect(choice.target)
        (tries.lost if failed.lost else tries.failed).add(where)

    async def _changed(self, seen: int, tries: _Tries) -> bool:
        """Whether there was news within the patience that one request has in all."""
        now = asyncio.get_running_loop().time()
        if tries.patient_until is None:
            tries.patient_until = now + self._deadlines.news
        try:
            async with self._waits.within(max(0.0, tries.patient_until - now)):
                await self._news.after(seen)
        except TimeoutError:
            return False
        return True

    def _refusal(
        self,
        choice: Chosen | Refused,
        model: str,
        table: RoutingTable,
        exchange: Exchange,
        tries: _Tries,
    ) -> Refuse:
        if isinstance(choice, Chosen):
            choice = Refused(Refusal.UNREACHABLE, choice.route)
        if exchange.hop and choice.reason is not Refusal.INCAPABLE:
            return Refuse(openai_error.moved(model), lost=bool(tries.lost))
        if choice.reason is not Refusal.INCAPABLE and not exchange.hop:
            route = choice.route
            self._traffic.missed(route.model if route else model, known=route is not None)
        return Refuse(openai_error.refused(choice, model, table))

    def _note(self, exchange: Exchange, kind: str) -> None:
        exchange.failure = kind
        self._metrics.upstream_failed(exchange.model, kind)


def _may_change(choice: Refused, tries: _Tries, exchange: Exchange) -> bool:
    """Whether a moment's patience may find a target: one just failed, and the mesh moves on."""
    if exchange.hop:
        return False  # whoever sent it on knows other nodes
    if choice.reason is Refusal.UNREACHABLE:
        return True
    return tries.count > 0 and choice.reason is Refusal.NOT_READY


def _streams(answer: Answer) -> bool:
    return answer.status == 200 and answer.content_type == "text/event-stream"
