"""Every refusal, from every endpoint, has the status, code, headers and shape of the document."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.upstreams import Deadlines
from tests.wire.api_harness import in_a_thread, judging
from tests.wire.api_schema import (
    BODIES,
    ELSEWHERE,
    FEW,
    KEY,
    SHAPES,
    described,
    keys_in,
    schema_of,
)
from tests.wire.gateway_harness import Call, Script, engine, gateway, plain, until

SCHEMA = schema_of(described(), FEW)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as one:
        yield one


async def dying(call: Call) -> None:
    call.reset()


async def silent(call: Call) -> None:
    await call.hung_up()


def failing(status: str, error: object) -> Script:
    async def script(call: Call) -> None:
        text = error if isinstance(error, str) else json.dumps({"error": error})
        await call.send(plain(status, text.encode()))

    return script


FULL = {
    "code": 400, "message": "too long", "type": "exceed_context_size_error",
    "n_prompt_tokens": 9, "n_ctx": 8,
}  # fmt: skip
CANNOT = {"code": 501, "message": "no embeddings", "type": "not_supported_error"}


@dataclass(frozen=True)
class Trouble:
    """:ivar code: that the answers have. :ivar routes: None for no table at all."""

    status: int
    code: str | None
    script: Script = judging
    state: ModelState = ModelState.READY
    routes: int | None = 1
    engines: int = 1
    there: bool = True
    model: str = "served-model"
    limit: int = 1 << 20
    key: str = "rate: 1000/min"
    capabilities: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def table(self, paths: Sequence[Path]) -> RoutingTable | None:
        if self.routes is None:
            return None
        ready = self.state is ModelState.READY
        targets = tuple(Target("local", str(path), ready, 4) for path in paths)
        routes = tuple(
            Route(name, self.state, targets, capabilities=self.capabilities)
            for name in ("served-model", "served-by-others")[: self.routes]
        )
        return RoutingTable(
            generation=1, routes=routes, max_body_bytes=self.limit, front=Front(wait_s=0)
        )


BY_KEY = {"X-Api-Key": KEY}
TROUBLES = (
    Trouble(400, "context_length_exceeded", failing("400 Bad Request", FULL)),
    Trouble(400, "model_not_capable", failing("501 Not Implemented", CANNOT)),
    Trouble(400, "model_not_capable", capabilities=("vision",)),
    Trouble(400, "model_ambiguous", routes=2, model="served"),
    Trouble(401, "invalid_api_key", headers=ELSEWHERE),
    Trouble(403, "model_not_allowed", key="models: [other]", headers=BY_KEY),
    Trouble(403, "origin_not_allowed", headers={"Origin": "http://evil.example"}),
    Trouble(404, "model_not_found", model="unheard-of"),
    Trouble(404, None, failing("404 Not Found", {"message": "File Not Found", "code": 404})),
    Trouble(413, "request_too_large", limit=20),
    Trouble(417, "expectation_failed", headers={"Expect": "a miracle"}),
    Trouble(421, "unknown_host", headers={"Host": "evil.example"}),
    Trouble(429, "rate_limit_exceeded", key="rate: 1/day", headers=BY_KEY),
    Trouble(500, None, failing("500 Internal Server Error", "no JSON at all")),
    Trouble(502, "engine_lost", dying, engines=2),
    Trouble(503, "not_ready", routes=None),
    Trouble(503, "model_unreachable", there=False),
    *(
        Trouble(503, f"model_{state}", state=state)
        for state in ModelState
        if state is not ModelState.READY
    ),
    Trouble(504, "engine_timeout", silent),
)


@asynccontextmanager
async def troubled(trouble: Trouble, folder: Path) -> AsyncIterator[str]:
    paths = [folder / f"{number}.sock" for number in range(trouble.engines)]
    more = {"keys": keys_in(folder, trouble.key), "deadlines": Deadlines(answer=0.1)}
    async with AsyncExitStack() as stack:
        for path in paths if trouble.there else ():
            await stack.enter_async_context(engine(path, trouble.script))
        running = await stack.enter_async_context(gateway(folder, trouble.table(paths), **more))
        yield running.base


def all_are_trusted(base: str, session: requests.Session) -> bool:
    """Whether the engines that died have answered a probe."""
    return "\nmeshd_gateway_suspect_targets 0.0" in session.get(f"{base}/metrics").text


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda one: f"{one.status}-{one.code}")
def test_every_refusal_looks_as_described(trouble: Trouble, session: requests.Session) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="mesh") as name,
        in_a_thread(lambda: troubled(trouble, Path(name))) as base,
    ):
        for path, body in BODIES.items():
            case = SCHEMA[path]["POST"].Case(
                body={"model": trouble.model, **body}, media_type="application/json"
            )
            if trouble.status == 429:
                case.call(base_url=base, session=session, headers=trouble.headers)
            if trouble.engines > 1:
                asyncio.run(until(lambda: all_are_trusted(base, session)))
            answer = case.call_and_validate(
                base_url=base, session=session, headers={**trouble.headers},
                checks=SHAPES,
            )  # fmt: skip
            assert answer.status_code == trouble.status, answer.text
            assert answer.json()["error"].get("code") == trouble.code
