"""Which target one request gets next, by all that is known now."""

from __future__ import annotations

from collections.abc import Callable

from meshd.gateway.choice import Choice, Chosen, Refusal, Refused, choose
from meshd.gateway.job import Job
from meshd.gateway.resolve import resolve
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.speeds import Speeds
from meshd.gateway.upstreams import Upstreams


class Choosing:
    """The newest table, this gateway's own evidence, and what the request has met so far."""

    def __init__(
        self, table: Callable[[], RoutingTable | None], upstreams: Upstreams, speeds: Speeds
    ) -> None:
        """:param table: the newest."""
        self._table = table
        self._upstreams = upstreams
        self._speeds = speeds

    def pick(self, job: Job, *, anew: bool = False) -> Choice:
        """:param anew: try what failed as well: there is news."""
        table = self._table()
        if table is None:
            return Refused(Refusal.UNKNOWN)
        avoided = self._upstreams.suspects
        if job.lost:
            avoided |= job.lost
        if job.failed and not anew:
            avoided |= job.failed
        model = job.exchange.model if job.out.begun else ""
        if not model:
            route = resolve(
                table,
                job.ask,
                allowed=job.exchange.pass_.allows,
                in_flight=self._upstreams.in_flight,
                suspects=avoided,
                exact_tokens=job.exact_tokens,
            )
            if isinstance(route, Refused):
                return self._member(job, route, table) or route
            model = route.model
        choice = choose(
            table,
            model,
            self._upstreams.in_flight,
            avoided,
            ask=job.ask,
            speeds=self._speeds,
            draw=job.draw,
            exact_tokens=job.exact_tokens,
            same_weights=job.weights,
            here_only=job.exchange.hop,
        )
        if isinstance(choice, Refused):
            return self._member(job, choice, table) or choice
        return choice

    def _member(self, job: Job, choice: Refused, table: RoutingTable) -> Chosen | None:
        """For a client of the mesh a member has the last word, and counts who found nothing."""
        if not table.client or job.attempts:
            return None
        if choice.reason not in (Refusal.UNKNOWN, Refusal.NOT_READY):
            return None
        if choice.route is None and job.exchange.pass_.limited:
            return None  # a member knows nothing of our keys, and what it would take the name for
        for peer in table.peers:
            target = Target(peer.node, "", True, 1, address=peer.address)
            if target.key not in self._upstreams.suspects:
                # An unknown name is nobody's: no metric gets a label of it.
                return Chosen(choice.route or Route("", ModelState.WAITING), target)
        return None

    def route_of(self, model: str) -> Route | None:
        """:param model: its exact name."""
        table = self._table()
        if table is None:
            return None
        return next((route for route in table.routes if route.model == model), None)
