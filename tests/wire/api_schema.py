"""What schemathesis knows: the document of one gateway, and what must be so of all its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from meshd.gateway.openapi.document import document
from meshd.gateway.protocols import PROTOCOLS
from meshd.keys.key import digest
from meshd.keys.key_folder import KeyPlaces

MODELS = ["served-model", "another-name"]
"""The one that is served, and its alias."""
KEY = "sk-mesh-test"
# What a proxy on this machine passes on counts as from elsewhere, so it needs a key.
ELSEWHERE = {"X-Forwarded-For": "192.0.2.1"}
MANY = 25
FEW = 10
OURS = {
    "allow", "cache-control", "connection", "content-length", "content-type", "date",
    "keep-alive", "server", "transfer-encoding",
}  # fmt: skip
"""Headers that HTTP itself describes."""


def described(*, local: bool = True) -> dict[str, Any]:
    """The document, with the names of the models that there are.

    :param local: as clients of this machine see it, which need no key.
    """
    whole = document()
    whole["components"]["schemas"]["ModelName"]["enum"] = MODELS
    if not local:
        whole["security"].remove({})
    return whole


def schema_of(whole: dict[str, Any], examples: int) -> Any:
    """The few examples are drawn only; the others also go through all that the schemas name."""
    settings = {
        "seed": 4,
        "generation": {
            "deterministic": True, "max-examples": examples, "database": "none"
        },
        "phases": {"coverage": {"enabled": examples != FEW}},
    }  # fmt: skip
    config = schemathesis.Config.from_dict(settings)
    return schemathesis.openapi.from_dict(whole, config=config)


@schemathesis.check
def no_header_is_undocumented(ctx: Any, response: Any, case: schemathesis.Case) -> None:
    found = case.operation.responses.find_by_status_code(response.status_code)
    if found is None:
        return
    known = {name.lower() for name, _ in found.headers.items()} | OURS
    assert set(response.headers) <= known, f"{set(response.headers) - known} at {response}"


@schemathesis.check
def errors_have_their_protocols_shape(ctx: Any, response: Any, case: schemathesis.Case) -> None:
    """Stricter than the document, which has to allow for requests whose path is not known."""
    anthropic = case.operation.path.startswith("/v1/messages") or (
        "anthropic-version" in response.request.headers and case.operation.path not in PROTOCOLS
    )
    if response.status_code >= 400 and response.request.method != "HEAD":
        told = response.json()
        assert "reasons" in told or (told.get("type") == "error") is anthropic, told
        assert ("request_id" in told) is anthropic


SHAPES = [
    errors_have_their_protocols_shape,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    no_header_is_undocumented,
]


def keys_in(folder: Path, more: str) -> KeyPlaces:
    keys = folder / "keys"
    keys.mkdir()
    (keys / "a.yaml").write_text(f"keys:\n  - {{name: a, hash: {digest(KEY).hex()}, {more}}}\n")
    return KeyPlaces(keys)


RANK = {"query": "ping", "documents": ["pong"]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "ping"}]},
    "/v1/responses": {"input": "ping"},
    "/v1/messages": {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "ping"}]},
    "/v1/completions": {"prompt": "ping"},
    "/v1/embeddings": {"input": "ping"},
    "/v1/rerank": RANK,
    "/v1/reranking": RANK,
    "/rerank": RANK,
    "/reranking": RANK,
}
