"""How long until a request is served, as far as that can be told. Pure.

Of a load: what was measured before, less the time since it began. Of a queue: the requests ahead,
each as long as the last ones took, over as many slots as there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshd.gateway.routes import Route, Target

# A load that takes longer than it used to takes on by this share of what it is late, and some.
_LATE_SHARE = 0.25
_LATE_LEAST_SHARE = 0.05
_FEW_SERVED = 3
_WEIGHT_OF_LAST = 0.2


@dataclass(frozen=True, slots=True)
class Eta:
    """:ivar seconds: None when there is nothing to tell it by.

    :ivar overdue: it should have loaded by now; the seconds are a guess then.
    :ivar loading: a target of the model loads now.
    """

    seconds: float | None = None
    overdue: bool = False
    loading: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """How long one request of a model takes at an engine: a moving average of the last few.

    :ivar count: measured so far.
    """

    mean_s: float = 0.0
    count: int = 0

    def after(self, took_s: float) -> Service:
        """With one more that was measured."""
        if not self.count:
            return Service(took_s, 1)
        # The plain mean of the first few, which would otherwise hang on the very first.
        weight = max(_WEIGHT_OF_LAST, 1 / (self.count + 1))
        return Service(self.mean_s + weight * (took_s - self.mean_s), self.count + 1)

    @property
    def known(self) -> bool:
        return self.count >= _FEW_SERVED


def load_left_s(load_s: float, elapsed_s: float) -> float:
    """Seconds until a load is done that takes `load_s` as a rule and began `elapsed_s` ago.

    One that is late is expected to be later still, the more so the later it is.
    """
    late_s = max(0.0, elapsed_s - load_s)
    return max(load_s - elapsed_s, _LATE_LEAST_SHARE * load_s + _LATE_SHARE * late_s)


def eta(route: Route, ahead: int, service: Service, now_s: float) -> Eta:
    """When a request that waits for this model may be served.

    :param ahead: requests that go before it.
    :param now_s: by the monotonic clock of `Target.since_s`.
    """
    ready = [one for one in route.targets if one.ready and not one.suspect]
    if ready:
        return Eta(_queue_s(ahead + 1, ready, service) if service.known else None)
    loads = [one for one in route.targets if one.since_s > 0 and not one.ready]
    known = [
        (load_left_s(one.load_s, now_s - one.since_s), now_s - one.since_s > one.load_s, one)
        for one in loads
        if one.load_s > 0
    ]
    if not known:
        return Eta(loading=bool(loads))
    left_s, overdue, target = min(known, key=lambda one: one[0])
    # Those that fill its slots at once wait for nobody.
    behind = max(0, ahead + 1 - max(1, target.slots))
    queued_s = _queue_s(behind, [target], service) if service.known else 0.0
    return Eta(left_s + queued_s, overdue, loading=True)


def elapsed_s(route: Route, now_s: float) -> float | None:
    """Since when the model loads; None when it does not."""
    begun = [one.since_s for one in route.targets if one.since_s > 0 and not one.ready]
    return max(0.0, now_s - min(begun)) if begun else None


def _queue_s(requests: int, targets: list[Target], service: Service) -> float:
    return requests * service.mean_s / sum(max(1, one.slots) for one in targets)
