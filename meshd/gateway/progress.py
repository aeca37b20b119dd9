"""What a client that waits is told of it. Pure."""

from __future__ import annotations

import math

from meshd.gateway.eta import Eta, elapsed_s
from meshd.gateway.routes import ModelState, Route

_NAME_MOST = 100


def progress(model: str, route: Route | None, expected: Eta, ahead: int, now_s: float) -> str:
    """An SSE comment without the end of its line.

    :param route: of the model, None when it is no longer there.
    :param expected: when the request may be served. :param ahead: requests that go before it.
    :param now_s: by the monotonic clock of `Target.since_s`.
    """
    parts = [_state(route, expected, now_s)]
    if ahead:
        parts.append(f"{ahead} ahead")
    name = "".join(c for c in model if c.isprintable())[:_NAME_MOST]
    return f": waiting for {name}: {', '.join(parts)}"


def _state(route: Route | None, expected: Eta, now_s: float) -> str:
    if route is None:
        return "no longer known"
    left = ""
    if expected.seconds is not None:
        left = f", about {max(1, math.ceil(expected.seconds))} s left"
    if expected.loading:
        since_s = elapsed_s(route, now_s)
        if expected.overdue:
            return f"loading, longer than usual{left}"
        return f"loading{left or f' for {since_s or 0:.0f} s'}"
    match route.state:
        case ModelState.READY:
            return f"all slots are taken{left}"
        case ModelState.LOADING:
            return "about to load"
        case ModelState.FAILED:
            return "its engine failed and is tried again"
    return "not loaded yet"
