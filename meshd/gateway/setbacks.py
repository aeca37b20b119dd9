"""What a failed attempt means: for the target, for the request, and for a stream that broke."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from meshd.gateway import openai_error
from meshd.gateway.choice import Chosen, place
from meshd.gateway.choosing import Choosing
from meshd.gateway.client_limit import client_limit_s
from meshd.gateway.continuation import CannotResume, Finished
from meshd.gateway.delivery import StreamBroken
from meshd.gateway.engine_call import EngineFailed
from meshd.gateway.intake import Refuse
from meshd.gateway.job import Job
from meshd.gateway.metrics import GatewayMetrics, Resumption
from meshd.gateway.routes import RoutingTable
from meshd.gateway.suspicion import Suspicion
from meshd.gateway.turns import RESUME_WAIT_S

# What a node says of a request that has had no turn there.
_MOVED = openai_error.moved("").code
# A request that kills engines must not go through all replicas.
_MAX_ENGINES_LOST = 2


class Setbacks:
    """Either the request is to be tried anew, or its answer ends here."""

    def __init__(
        self,
        table: Callable[[], RoutingTable | None],
        choosing: Choosing,
        suspicion: Suspicion,
        metrics: GatewayMetrics,
        now_s: Callable[[], float],
    ) -> None:
        """:param table: the newest. :param now_s: the waiting room's clock."""
        self._table = table
        self._choosing = choosing
        self._suspicion = suspicion
        self._metrics = metrics
        self._now_s = now_s

    def failed(self, job: Job, choice: Chosen, failed: EngineFailed) -> None:
        """:raises Refuse: it has cost enough engines."""
        model = choice.route.model
        self._note(job, failed.kind)
        where = place(model, choice.target)
        if failed.kind == "too_long":
            return  # the target is well, and `exact_tokens` says who else is asked
        if failed.answered:
            self._suspicion.lacks(where)
        elif failed.kind != "moved":
            self._suspicion.suspect(choice.target)
        self._without(job, choice, lost=failed.lost)
        if job.deaths >= _MAX_ENGINES_LOST:
            raise Refuse(openai_error.engine_lost(model), lost=True)

    @staticmethod
    def _without(job: Job, choice: Chosen, *, lost: bool) -> None:
        """Try this place no more, or not before it answers again: a stream that has begun may go
        on with the engine that was started in place of the one it lost, and the death of a split
        says more of its nodes than of the request.
        """
        job.deaths += lost
        for_good = lost and not job.out.begun and not choice.target.split
        where = place(choice.route.model, choice.target)
        (job.lost if for_good else job.failed).add(where)

    def sent_back(self, job: Job, choice: Chosen) -> None:
        """It had to wait there and had no turn. The node is well: perhaps another has more room."""
        job.sent_back += 1
        job.failed = {place(choice.route.model, choice.target)}
        if not isinstance(self._choosing.pick(job), Chosen):
            job.failed.clear()

    async def broken(
        self, job: Job, choice: Chosen, broken: StreamBroken
    ) -> web.StreamResponse | None:
        """After an engine was lost in the middle of a stream.

        :returns: None when another one is to go on with it.
        :raises Refuse: none can.
        """
        model, where = choice.route.model, place(choice.route.model, choice.target)
        if broken.said is not None and broken.said.code == _MOVED:
            # It has had no turn there, and the client nothing new.
            self.failed(job, choice, EngineFailed("refused_there", lost=False, answered=True))
            return None
        self._note(job, broken.kind)
        job.whole = broken.whole
        if broken.kind in ("died_mid_stream", "silent"):
            self._suspicion.suspect(choice.target)
        elif broken.kind == "unfinished" and job.remote:
            self._suspicion.lacks(where)
        if broken.kind != "diverged":
            self._without(job, choice, lost=broken.lost)
        error = broken.said or openai_error.engine_lost(model)
        resumption = job.resumption
        if job.exchange.hop:
            # Whoever sent it on goes on with it elsewhere, and counts the engines that it cost.
            if broken.lost:
                return await job.out.fail(openai_error.engine_lost(model), whole=broken.whole)
            return await job.out.end()
        if resumption is None or not broken.whole or broken.kind == "not_resumed":
            self._metrics.resumed(
                Resumption.NOT_RESUMABLE if resumption is None else Resumption.FAILED
            )
            raise Refuse(error)
        first_s = job.exchange.first_token_s or 0.0
        plan = resumption.plan(
            spent_s=job.exchange.elapsed_s() - first_s, diverged=broken.kind == "diverged"
        )
        if isinstance(plan, Finished):
            self._metrics.resumed(Resumption.RESUMED)
            return await job.out.end(plan.events)
        if job.deaths >= _MAX_ENGINES_LOST:
            self._metrics.resumed(Resumption.FAILED)
            raise Refuse(error)
        if isinstance(plan, CannotResume):
            self._metrics.resumed(Resumption.NOT_RESUMABLE)
            raise Refuse(openai_error.not_resumed(model, plan.reason))
        resumption.count += 1
        job.broke_s = self._now_s()
        table = self._table()
        wait_s = table.front.wait_s if table is not None else 0.0
        wait_s = min(max(RESUME_WAIT_S, wait_s), client_limit_s(job.request.headers))
        job.until_s = job.broke_s + wait_s
        await job.out.comment(f"{choice.target.name or choice.target.node} was lost, resuming")
        return None

    def _note(self, job: Job, kind: str) -> None:
        job.exchange.failure = kind
        self._metrics.upstream_failed(job.exchange.model, kind)
