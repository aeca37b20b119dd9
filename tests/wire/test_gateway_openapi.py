"""Schemathesis asks the gateway what its document allows, and what it does not."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import requests
import schemathesis
from schemathesis.checks import not_a_server_error

from meshd.engine.locate import SERVER, Place
from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from tests.wire import gateway_harness
from tests.wire.api_harness import in_a_thread, judging
from tests.wire.api_schema import (
    ELSEWHERE,
    FEW,
    KEY,
    MANY,
    MODELS,
    SHAPES,
    described,
    keys_in,
    schema_of,
)
from tests.wire.gateway_harness import gateway
from tests.wire.llama_harness import MODEL, llama


def table_of(path: Path) -> RoutingTable:
    targets = (Target("local", str(path), True, 4),)
    route = Route(MODELS[0], ModelState.READY, targets, aliases=(MODELS[1],))
    return RoutingTable(generation=1, routes=(route,), front=Front(wait_s=0))


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[str]:
    path = folder / "e.sock"
    keys = keys_in(folder, "rate: 100000/min, tokens: 1G/day")
    async with (
        gateway_harness.engine(path, judging),
        gateway(folder, table_of(path), keys=keys) as running,
    ):
        yield running.base


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    # Not pytest's folder: a socket's path has at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="mesh") as name,
        in_a_thread(lambda: node(Path(name))) as url,
    ):
        yield url


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as one:
        yield one


OPEN = schema_of(described(), MANY)
KEYED = schema_of(described(local=False), FEW)
REAL = schema_of(described(), FEW)


@OPEN.parametrize()
def test_the_gateway_does_what_its_document_says(
    case: schemathesis.Case, base: str, session: requests.Session
) -> None:
    case.call_and_validate(base_url=base, session=session)


@KEYED.parametrize()
def test_with_a_key_from_elsewhere_too_and_no_key_is_ignored(
    case: schemathesis.Case, base: str, session: requests.Session
) -> None:
    case.headers.pop("X-Api-Key", None)
    heads = ELSEWHERE | {"Authorization": f"Bearer {KEY}"}
    answer = case.call_and_validate(base_url=base, session=session, headers=heads)
    assert answer.status_code != 401


@KEYED.parametrize()
def test_without_one_only_what_says_nothing_is_open(
    case: schemathesis.Case, base: str, session: requests.Session
) -> None:
    answer = case.call_and_validate(base_url=base, session=session, headers=ELSEWHERE)
    always = case.operation.path in ("/healthz", "/openapi.json")
    assert (answer.status_code == 401) is not always


@asynccontextmanager
async def llama_node(server: Path, folder: Path) -> AsyncIterator[str]:
    """A real engine that answers everything but rerank, in few words."""
    options = ["--alias", MODELS[0], "--ctx-size", "512", "--predict", "4", "--parallel", "1"]
    path = folder / "e.sock"
    async with llama(server, path, options), gateway(folder, table_of(path)) as running:
        yield running.base


@pytest.fixture(scope="module")
def real(engine: Place) -> Iterator[str]:
    if not MODEL.exists():
        pytest.skip(f"{MODEL} is not there")
    server = engine.binary(SERVER)
    assert server
    with (
        tempfile.TemporaryDirectory(prefix="mesh") as name,
        in_a_thread(lambda: llama_node(Path(server), Path(name))) as url,
    ):
        yield url


@REAL.parametrize()
def test_llama_server_answers_as_described(
    case: schemathesis.Case, real: str, session: requests.Session
) -> None:
    if isinstance(case.body, dict):
        # Else it may write until its context is full, some hundred tokens.
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            case.body.pop(name, None)
    case.call_and_validate(base_url=real, session=session, checks=[*SHAPES, not_a_server_error])
