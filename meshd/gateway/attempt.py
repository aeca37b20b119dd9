"""One request to one target: from the call to the end of its answer, or to how it failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from meshd.gateway import headers, openai_error
from meshd.gateway.answer_quality import SHARD, said_elsewhere, word
from meshd.gateway.choice import Chosen, choose, find_route, place
from meshd.gateway.continuation import hopeless as refused_for_good
from meshd.gateway.delivery import Delivery, StreamBroken
from meshd.gateway.engine_call import Door, EngineFailed, call
from meshd.gateway.engine_http.answer import Answer
from meshd.gateway.intake import Refuse
from meshd.gateway.job import Job
from meshd.gateway.onward import Onward
from meshd.gateway.openai_error import ApiError
from meshd.gateway.resumption import Resumption
from meshd.gateway.routes import RoutingTable, Target
from meshd.gateway.speeds import Speeds
from meshd.gateway.telemetry import Stage
from meshd.gateway.tokens import Timings
from meshd.gateway.upstreams import Deadlines, Upstreams
from meshd.gateway.waits import Wait, Waits

QUIET_S = 1.0
"""A stream that flows is left alone, whatever is said of its node."""

# Of requests whose streams may have to go on elsewhere, all together.
_MAX_KEPT_BYTES = 256 * 1024 * 1024


class Attempts:
    """:ivar speeds: what was measured of each place."""

    def __init__(
        self,
        table: Callable[[], RoutingTable | None],
        upstreams: Upstreams,
        deadlines: Deadlines,
        waits: Waits,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param table: the newest. :param now_s: the waiting room's clock."""
        self.speeds = Speeds()
        self._table = table
        self._upstreams = upstreams
        self._deadlines = deadlines
        self._waits = waits
        self._now_s = now_s
        self._delivery = Delivery(deadlines, waits)
        self._kept_bytes = 0

    async def run(
        self, job: Job, chosen: Chosen, door: Door, body: bytes, stage: Stage
    ) -> web.StreamResponse:
        """:param body: to send.

        :raises EngineFailed: another target may be tried.
        :raises StreamBroken: the client has a part of the answer.
        :raises Refuse: there is nothing more to try.
        """
        target, model = chosen.target, chosen.route.model
        table = self._table()
        job.remote = not target.socket
        head = headers.to_engine(
            job.request.headers,
            job.exchange.request_id,
            hop=job.remote and not (table is not None and table.client),
        )
        if job.remote:
            head.update(self._onward(job).headers())
            if job.ask.quality is not None:
                head[headers.QUALITY] = str(job.ask.quality)
        head.update(stage.headers())
        measure = self._measure(job, place(model, target), max(1, target.slots), target.busy)
        answer: Answer | None = None
        wait: Wait | None = None
        try:
            async with self._waits.within(
                self._deadlines.answer, lambda: self._hopeless(job, model, target, wait)
            ) as wait:
                answer = await call(door, job.protocol.path, body, head)
                job.exchange.here = not job.remote
                self._judged(job, answer)
                if not _streams(answer):
                    return await self._whole(job, answer, wait, stage)
                self._prepare(job, target, body)
                response = await self._delivery.stream(job, answer, wait)
                self._measured(job, stage, job.counted.timings)
                measure()
                return response
        except TimeoutError:
            return self._too_late(job, wait)
        finally:
            if answer is not None:
                answer.close()

    def _onward(self, job: Job) -> Onward:
        return Onward(
            job.exchange.elapsed_s(),
            job.until_s - self._now_s(),
            job.out.begun,
            job.exchange.key,
            job.exchange.pass_.priority,
        )

    @staticmethod
    def _judged(job: Job, answer: Answer) -> None:
        """Note how good the answer is; one that a shard had a part in is a shard's."""
        if job.remote and (said := said_elsewhere(answer.headers)):
            job.signs[headers.QUALITY] = said
        if answer.status == 200 and job.exchange.quality != SHARD:
            job.exchange.quality = word(job.signs[headers.QUALITY])

    async def _whole(
        self, job: Job, answer: Answer, wait: Wait, stage: Stage
    ) -> web.StreamResponse:
        if job.out.begun:
            # The client waits for the rest of a stream, and gets no other answer.
            if answer.status >= 400 and not refused_for_good(answer.status):
                raise EngineFailed("refused_there", lost=False, answered=True)
            raise StreamBroken("not_resumed")
        try:
            response, timings = await self._delivery.whole(job, answer, wait)
        except Refuse as refusal:
            self._too_long(job, refusal.error)
            raise
        self._measured(job, stage, timings)
        if job.out.prepared:
            raise Refuse(openai_error.engine_lost(job.exchange.model, "did not stream its answer"))
        return response

    @staticmethod
    def _measured(job: Job, stage: Stage, timings: Timings | None) -> None:
        # What an engine elsewhere measured, its own node's gateway tells.
        if not job.remote:
            stage.measured(timings)

    def _too_long(self, job: Job, error: ApiError) -> None:
        """A prompt that this target's slots do not hold may fit another's.

        :raises EngineFailed: so try one.
        """
        tokens = error.extra.get("n_prompt_tokens")
        if error.code != "context_length_exceeded" or not isinstance(tokens, int):
            return
        if not job.exchange.hop and tokens > job.exact_tokens:
            job.exact_tokens, job.refused = tokens, error
            raise EngineFailed("too_long", lost=False, answered=True)

    def _measure(self, job: Job, where: str, slots: int, busy: int) -> Callable[[], None]:
        """Have the first token of a stream timed. :returns: to be called at the end of it.

        A request that found all slots taken is not timed: the wait would count as slowness, and
        the place would be shunned long after its queue has gone.
        """
        if max(busy + 1, self._upstreams.in_flight.get(where, 0)) > slots:
            job.first_token = _not_timed
            return _not_timed
        began_s = time.monotonic()

        def first_token() -> None:
            timings = job.counted.timings
            cached = timings.cached if timings else 0
            self.speeds.evaluated(where, job.ask.prompt_tokens - cached, time.monotonic() - began_s)

        job.first_token = first_token
        return lambda: self.speeds.served(where, time.monotonic() - began_s)

    def _prepare(self, job: Job, target: Target, body: bytes) -> None:
        """Before the first piece of a stream."""
        if job.out.begun or job.exchange.hop:
            return
        # Of an engine that failed before its first word; its weights were others, perhaps.
        self.forget(job)
        job.resumption = None
        room = self._kept_bytes + len(body) <= _MAX_KEPT_BYTES
        if target.weights and room:
            job.resumption = Resumption(job.protocol.path, body, target.weights)
            job.kept_bytes = len(body)
            self._kept_bytes += len(body)

    def forget(self, job: Job) -> None:
        """It has ended."""
        self._kept_bytes -= job.kept_bytes
        job.kept_bytes = 0

    def _hopeless(self, job: Job, model: str, target: Target, wait: Wait | None) -> bool:
        """Whether the newest table says that nothing more is to be expected from this target."""
        if not job.out.begun:
            return job.remote and self._has_moved(job, model, target)
        if job.resumption is None or wait is None:
            return False
        table = self._table()
        if table is None or asyncio.get_running_loop().time() - wait.moved_s < QUIET_S:
            return False
        route = find_route(table, model)
        targets = route.targets if route else ()
        listed = next((one for one in targets if one.key == target.key), None)
        if listed is None:
            # Its node is gone, or it takes nothing new and ends what it has.
            return job.remote and all(peer.node != target.node for peer in table.peers)
        return listed.suspect or not listed.ready

    def _has_moved(self, job: Job, model: str, target: Target) -> bool:
        """Whether the newest table says that this target will not answer, or others better."""
        table = self._table()
        if table is None:
            return False
        route = find_route(table, model)
        targets = route.targets if route else ()
        listed = next((one for one in targets if one.key == target.key), None)
        if listed is not None and not listed.suspect:
            return False
        if listed is None and all(peer.node != target.node for peer in table.peers):
            return True  # its node is gone
        # It may yet answer: missed just now, or about to unload when it is done.
        others = self._upstreams.suspects | {target.key, place(model, target)}
        choice = choose(table, model, self._upstreams.in_flight, others, ask=job.ask)
        return isinstance(choice, Chosen) and not choice.target.suspect

    def _too_late(self, job: Job, wait: Wait | None) -> web.StreamResponse:
        """:returns: to a client that takes nothing.

        :raises EngineFailed, StreamBroken, Refuse: what to make of a wait that ended.
        """
        if wait is not None and wait.given_up:
            if job.out.begun:
                raise StreamBroken("moved")
            raise EngineFailed("moved", lost=False)
        if job.out.blocked and not self._waits.stopping:
            job.exchange.failure = "client_stalled"
            return job.out.abort()
        if self._waits.stopping:
            raise Refuse(openai_error.stopping())
        job.exchange.failure = "timeout"
        raise Refuse(openai_error.engine_silent(job.exchange.model))


def _not_timed() -> None:
    """It waited elsewhere."""


def _streams(answer: Answer) -> bool:
    return answer.status == 200 and answer.content_type == "text/event-stream"
