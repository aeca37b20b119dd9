"""What the brain hears of the traffic, over the control socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from aiohttp import web

from meshd.gateway.routes import Front, ModelState
from meshd.gateway.traffic import PATH, ModelTraffic, TrafficReport, decode
from tests.wire.gateway_harness import DONE, Call, engine, event, plain, streaming, until
from tests.wire.mesh_harness import node, table

USAGE = b'{"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}'


@dataclass
class Brain:
    reports: list[TrafficReport] = field(default_factory=list)

    def said(self, model: str) -> ModelTraffic:
        found = [one for one in self.reports[-1].models if one.model == model]
        return found[0] if found else ModelTraffic(model)


@asynccontextmanager
async def brain(path: Path) -> AsyncIterator[Brain]:
    heard = Brain()

    async def traffic(request: web.Request) -> web.Response:
        heard.reports.append(decode(await request.read()))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post(PATH, traffic)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield heard
    finally:
        await runner.cleanup()


async def test_requests_are_counted_where_they_enter_and_a_brain_that_was_away_misses_none(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "e.sock", tmp_path / "s.sock"
    controls = tmp_path / "a.ctl", tmp_path / "b.ctl"

    async def script(call: Call) -> None:
        await call.send(plain("200 OK", USAGE))

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engine(path, script))
        a = await stack.enter_async_context(node(tmp_path, "a", control=controls[0]))
        b = await stack.enter_async_context(node(tmp_path, "b", control=controls[1]))
        far = await stack.enter_async_context(brain(controls[1]))
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        for _ in range(4):
            assert (await a.post({"model": "m"}))[0] == 200
        assert (await a.post({"model": "nowhere"}))[0] == 404
        inner = AsyncExitStack()
        near = await inner.enter_async_context(brain(controls[0]))
        await until(lambda: bool(near.reports) and near.said("m").requests == 4)
        m, unknown = near.said("m"), near.said("nowhere")
        assert (m.misses, m.prompt_tokens, m.completion_tokens) == (0, 28, 20)
        assert m.tokens_s == 0, "it was made elsewhere"
        assert (unknown.known, unknown.requests, unknown.misses) == (False, 1, 1)
        await until(lambda: bool(far.reports) and far.said("m").tokens_s > 0)
        assert (far.said("m").requests, far.said("m").completion_tokens) == (0, 0)
        # A brain that starts anew hears all of it, though nothing has happened since.
        await inner.aclose()
        again = await stack.enter_async_context(brain(controls[0]))
        await until(lambda: bool(again.reports))
        assert again.said("m").requests == 4
        assert again.reports[-1].boot == near.reports[-1].boot
        assert again.reports[-1].boot != far.reports[-1].boot
        await a.tell(table([], [a, b], state=ModelState.LOADING))
        assert (await a.post({"model": "m"}))[0] == 503
        await until(lambda: again.said("m").misses == 1)
        await stack.enter_async_context(engine(other, streaming([event("x")] * 6 + [DONE])))
        await a.tell(table([a.own(other)], [a, b]))
        assert (await a.post({"model": "m", "stream": True}))[0] == 200
        await until(lambda: again.said("m").completion_tokens == 26)
        assert again.said("m").tokens_s > 0


async def test_what_runs_now_and_who_does_not_answer(tmp_path: Path) -> None:
    path, control, go = tmp_path / "e.sock", tmp_path / "a.ctl", asyncio.Event()

    async def script(call: Call) -> None:
        await go.wait()
        await call.send(plain("200 OK", USAGE))

    async with (
        engine(path, script),
        brain(control) as heard,
        node(tmp_path, "a", control=control) as a,
    ):
        async with node(tmp_path, "b") as b:
            gone = b.seen(slots=64)
        routes = table([gone, a.own(path, slots=1)], [a, b])
        await a.tell(replace(routes, front=Front(wait_s=60)))
        asking = [asyncio.create_task(a.post({"model": "m"})) for _ in range(3)]

        def busy() -> bool:
            return bool(heard.reports) and heard.said("m").in_flight == 2

        await until(busy)
        # The engine has one more than it has slots; the third waits in the gateway.
        assert heard.said("m").waiting == 1
        assert await a.metric('meshd_num_requests_waiting{model="m"}') == 1
        assert heard.reports[-1].unreachable == (gone.node,)
        count = len(heard.reports)
        go.set()
        await asyncio.gather(*asking)
        await until(lambda: heard.said("m").in_flight == 0)
        assert len(heard.reports) > count
