"""The models as clients see them, in OpenAI's shape and in Anthropic's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from meshd.gateway.answer_quality import EXACT, SHARD
from meshd.gateway.routes import Route, Target


def openai_list(routes: Sequence[Route]) -> dict[str, Any]:
    return {"object": "list", "data": [openai_model(route) for route in routes]}


def openai_model(route: Route) -> dict[str, Any]:
    """OpenAI's model object; what the mesh knows beyond it is under `mesh`."""
    return {
        "id": route.model,
        "object": "model",
        "created": route.created_s,
        "owned_by": "meshd",
        "mesh": _known(route),
    }


def anthropic_list(routes: Sequence[Route]) -> dict[str, Any]:
    """All of them on one page."""
    return {
        "data": [anthropic_model(route) for route in routes],
        "has_more": False,
        "first_id": routes[0].model if routes else None,
        "last_id": routes[-1].model if routes else None,
    }


def anthropic_model(route: Route) -> dict[str, Any]:
    """Anthropic's model object, with `mesh` as in OpenAI's."""
    created = datetime.fromtimestamp(route.created_s, UTC)
    return {
        "type": "model",
        "id": route.model,
        "display_name": route.model,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",  # the client for Python requires it; nothing here is retired
        "max_input_tokens": route.context or None,
        "mesh": _known(route),
    }


def _known(route: Route) -> dict[str, Any]:
    return {
        "state": route.state.value,
        "detail": route.detail,
        "context": route.context,
        "quality": route.quality,
        "capabilities": route.capabilities,
        "aliases": route.aliases,
        "replicas": [_replica(one) for one in route.targets if one.ready],
    }


def _replica(target: Target) -> dict[str, Any]:
    """An engine that serves it now, and how well."""
    told: dict[str, Any] = {
        "node": target.name or target.node,
        "quality": EXACT if target.whole else SHARD,
        "context": target.context,
    }
    if target.whole:
        return told
    measured = [asdict(one) for one in target.measured]
    kept = {"experts": target.experts, "experts_all": target.experts_all}
    return {**told, "shard": target.shard, **kept, "measured": measured}
