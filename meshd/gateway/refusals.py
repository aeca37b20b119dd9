"""Which refusals waiting may help, and what to say when it did not. Pure."""

from __future__ import annotations

import math

from meshd.gateway import openai_error
from meshd.gateway.choice import Refusal, Refused
from meshd.gateway.job import Job
from meshd.gateway.openai_error import ApiError, unavailable
from meshd.gateway.routes import ModelState, RoutingTable
from meshd.gateway.wait_ends import Full, TooLong

OURS = frozenset({Refusal.UNKNOWN, Refusal.NOT_READY, Refusal.UNREACHABLE, Refusal.FULL})
"""What is no fault of the request: another node may serve it, or this one later."""


def may_change(choice: Refused, job: Job) -> bool:
    """Whether there may be a target for this request by and by."""
    if choice.route is None:
        return False
    if choice.reason is Refusal.FULL:
        return True
    if job.exchange.hop:
        return False  # whoever sent it on knows other nodes
    if choice.reason is Refusal.QUALITY:
        return job.out.begun  # what it began with may come back
    if choice.reason is Refusal.UNREACHABLE:
        return True
    if choice.reason is not Refusal.NOT_READY:
        return False
    return job.attempts > 0 or choice.route.state in (
        ModelState.READY,
        ModelState.LOADING,
        ModelState.WAITING,
    )


def no_room(full: Full, model: str, key: str) -> ApiError:
    """No more requests may wait. :param key: name of the client's API key, "" without one."""
    retry_s = math.ceil(full.retry_s)
    if full.own and key:
        return ApiError(
            429,
            f"Too many requests of this API key wait for the model `{model}` already.",
            "requests",
            code="rate_limit_exceeded",
            retry_after_s=retry_s,
        )
    return unavailable(
        f"The model `{model}` is busy, and all places to wait are taken.",
        "model_overloaded",
        retry_s,
    )


def too_long(late: TooLong, choice: Refused, table: RoutingTable) -> ApiError:
    """It would take, or has taken, longer than the request may wait."""
    assert choice.route is not None
    error = openai_error.refused(choice, choice.route.model, table)
    if late.eta_s is None:
        return error
    seconds = max(1, math.ceil(late.eta_s))
    return ApiError(
        error.status,
        f"{error.message} It may be served in about {seconds} s.",
        error.type,
        code=error.code,
        retry_after_s=seconds,
        extra={"eta_s": seconds},
    )
