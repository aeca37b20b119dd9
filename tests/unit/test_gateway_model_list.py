"""The list of models, in both shapes, as the real clients read it."""

from __future__ import annotations

import json

from anthropic.pagination import SyncPage
from anthropic.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Model

from meshd.gateway.model_list import anthropic_list, anthropic_model, openai_list, openai_model
from meshd.gateway.routes import ModelState, Route

ROUTES = (
    Route(
        "coder",
        ModelState.LOADING,
        aliases=("c",),
        context=32768,
        quality="lossy",
        capabilities=("chat", "tools"),
        created_s=1_700_000_000,
        detail="it loads",
    ),
    Route("new", ModelState.WAITING),
)

routes = st.builds(
    Route,
    model=st.text(min_size=1),
    state=st.sampled_from(ModelState),
    context=st.integers(0, 2**31),
    created_s=st.integers(0, 2**32),
    detail=st.text(),
    aliases=st.lists(st.text(min_size=1)).map(tuple),
)


def test_what_the_mesh_knows_of_a_model_is_told_in_both_shapes() -> None:
    known = {
        "state": "loading",
        "detail": "it loads",
        "context": 32768,
        "quality": "lossy",
        "capabilities": ("chat", "tools"),
        "aliases": ("c",),
        "replicas": [],
    }
    assert openai_model(ROUTES[0]) == {
        "id": "coder",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "meshd",
        "mesh": known,
    }
    assert anthropic_model(ROUTES[0]) == {
        "type": "model",
        "id": "coder",
        "display_name": "coder",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 32768,
        "mesh": known,
    }
    assert anthropic_model(ROUTES[1])["max_input_tokens"] is None


def test_all_models_are_listed_whatever_their_state() -> None:
    assert [one["id"] for one in openai_list(ROUTES)["data"]] == ["coder", "new"]
    page = anthropic_list(ROUTES)
    assert [one["id"] for one in page["data"]] == ["coder", "new"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("coder", "new", False)
    empty = anthropic_list(())
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)


@given(routes)
def test_the_clients_own_types_take_every_model(route: Route) -> None:
    ours = json.loads(json.dumps(openai_model(route)))
    assert Model.model_validate(ours, strict=True).id == route.model
    page = json.loads(json.dumps(anthropic_list((route,))))
    read = SyncPage[ModelInfo].model_validate(page)
    assert read.data[0].id == route.model
    assert read.data[0].created_at.timestamp() == route.created_s
