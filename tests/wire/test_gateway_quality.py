"""Requests that ask for a quality, over one gateway and several: answered, refused, waited for,
resumed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from meshd.gateway.routes import Front, RoutingTable, Target, weights_of
from meshd.quality import Fidelity
from tests.unit.streams import events_of, heard, recordings
from tests.wire.gateway_harness import (
    CHAT,
    SSE_HEAD,
    Call,
    Running,
    Script,
    answering,
    chunk,
    engine,
    gateway,
    plain,
    streaming,
    until,
)
from tests.wire.mesh_harness import Node, caller, name_of, node, table
from tests.wire.test_gateway_waiting import tell, waiting

MESSAGES = "/v1/messages"
SAID = "shard; experts=12/16; top1=0.962; perplexity=1.031; kl=0.040"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}

Answer = tuple[int, bytes, dict[str, str]]


def shard(target: Target, top1: float = 0.962, key: str = "key") -> Target:
    measured = (Fidelity("prose", top1, 1.031, 0.04), Fidelity("code", 0.99, 1.0, 0.001))
    return replace(
        target, shard=key, experts=12, experts_all=16, measured=measured,
        weights=weights_of("fp", key),
    )  # fmt: skip


def whole(target: Target) -> Target:
    return replace(target, weights="fp")


def bounded(
    targets: Sequence[Target], nodes: Sequence[Node] = (), *, model: str = "m", wait_s: float = 0
) -> RoutingTable:
    """A table whose model may be served from shards."""
    made = table(targets, nodes, model=model)
    (route,) = made.routes
    return replace(
        made, generation=1, routes=(replace(route, quality="min_top1=0.5"),),
        front=Front(wait_s=wait_s),
    )  # fmt: skip


def here(path: Path) -> Target:
    return Target("local", str(path), True, 4)


async def ask(
    at: Node | Running, quality: str = "", path: str = CHAT, body: object = None, **headers: str
) -> Answer:
    running = at.running if isinstance(at, Node) else at
    heads = {"X-Mesh-Quality": quality, **headers} if quality else headers
    async with running.http.post(running.base + path, json=body or BODY, headers=heads) as answer:
        return answer.status, await answer.read(), dict(answer.headers)


def error(answer: Answer) -> dict[str, str]:
    found: dict[str, str] = json.loads(answer[1])["error"]
    return found


async def test_the_quality_goes_there_and_comes_back_over_two_gateways(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, answering()) as far,
        node(tmp_path, "a") as a,
        node(tmp_path, "b") as b,
    ):
        await b.tell(bounded([shard(b.own(path))], [a, b]))
        await a.tell(bounded([shard(b.seen())], [a, b]))
        for quality in ("", "min_top1=0.96, max_kl=0.05"):
            status, _, heads = await ask(a, quality)
            assert (status, heads["X-Mesh-Quality"]) == (200, SAID)
        assert all("x-mesh" not in call.head.lower() for call in far.calls)
        assert (await ask(a, "min_top1=0.97"))[0] == 503
        # What the asked gateway has not heard yet, the one that answers knows.
        await a.tell(bounded([whole(b.seen())], [a, b]))
        assert (await ask(a))[2]["X-Mesh-Quality"] == SAID
        asked = len(far.calls)
        status, _, _ = await ask(a, "min_top1=0.97")
        assert status == 503
        assert (await ask(a, "exact"))[0] == 503
        assert len(far.calls) == asked
        await b.tell(bounded([whole(b.own(path))], [a, b]))
        status, _, heads = await ask(a, "exact")
        assert (status, heads["X-Mesh-Quality"]) == (200, "exact")
        # Counted where they entered the mesh.
        for at, shards, exact in ((a, 3, 1), (b, 0, 0)):
            for quality, count in (("shard", shards), ("exact", exact)):
                line = f'meshd_answers_total{{model="m",quality="{quality}"}}'
                assert await at.metric(line) == count


async def test_a_node_that_is_asked_in_error_says_that_the_model_is_elsewhere(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, answering()) as unused,
        node(tmp_path, "a") as a,
        node(tmp_path, "b") as b,
        caller(a.member) as http,
    ):
        await b.tell(bounded([shard(b.own(path)), whole(a.seen())], [a, b]))
        async with http.post(
            f"https://{b.address}{CHAT}",
            json=BODY,
            headers={"X-Mesh-Hop": "1", "X-Mesh-Quality": "exact"},
            server_hostname=name_of(b),
        ) as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "model_moved"
        assert not unused.calls


async def test_a_node_that_is_missed_is_not_left_for_a_shard_that_would_not_do(
    tmp_path: Path,
) -> None:
    full, part, go_on = tmp_path / "full", tmp_path / "part", asyncio.Event()

    async def slow(call: Call) -> None:
        await go_on.wait()
        await answering("full")(call)

    async with AsyncExitStack() as stack:
        a, b, c = nodes = [await stack.enter_async_context(node(tmp_path, one)) for one in "abc"]
        asked = await stack.enter_async_context(engine(full, slow))
        await stack.enter_async_context(engine(part, answering("part")))
        await b.tell(bounded([whole(b.own(full))], nodes))
        await c.tell(bounded([shard(c.own(part))], nodes))
        await a.tell(bounded([whole(b.seen()), shard(c.seen())], nodes))
        asking = asyncio.create_task(ask(a, "exact"))
        await until(lambda: bool(asked.calls))
        await a.tell(bounded([whole(b.seen(suspect=True)), shard(c.seen())], nodes))
        go_on.set()
        status, body, heads = await asyncio.wait_for(asking, 10)
        assert (status, body) == (200, b'{"said":"full"}')
        assert heads["X-Mesh-Attempts"] == "1"


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/embeddings"])
async def test_refusals_have_the_protocol_s_shape(tmp_path: Path, path: str) -> None:
    sock = tmp_path / "e.sock"
    async with (
        engine(sock, answering()) as served,
        gateway(tmp_path, bounded([shard(here(sock))])) as running,
    ):
        for quality, code, status, words in (
            ("exact", "quality_unavailable", 503, "not served exactly now. local has a shard"),
            ("min_top1=0.97", "quality_unavailable", 503, "prose is 0.962, not 0.97"),
            ("max_kl=0.01,min_top1=0.9", "quality_unavailable", 503, "KL divergence on prose"),
            ("good", "invalid_quality", 400, "quality is exact, or one or more of min_top1"),
            ("min_top1=2", "invalid_quality", 400, "min_top1 is 2, not 0 to 1"),
        ):
            answer = await ask(running, quality, path)
            found = error(answer)
            assert (answer[0], found["code"]) == (status, code)
            assert words in found["message"]
            assert (json.loads(answer[1]).get("type") == "error") is (path == MESSAGES)
            assert ("Retry-After" in answer[2]) is (status == 503)
        assert not served.calls
        assert (await ask(running, "min_top1=0.96", path))[0] == 200


async def test_the_list_of_models_says_what_each_engine_serves(tmp_path: Path) -> None:
    table = bounded([shard(here(tmp_path / "a")), whole(here(tmp_path / "b"))])
    (route,) = table.routes
    slow = replace(here(tmp_path / "c"), ready=False)
    table = replace(table, routes=(replace(route, targets=(*route.targets, slow)),))
    async with (
        gateway(tmp_path, table) as running,
        running.http.get(running.base + "/v1/models/m") as answer,
    ):
        mesh = (await answer.json())["mesh"]
    assert mesh["quality"] == "min_top1=0.5"
    part, full = mesh["replicas"]
    assert full == {"node": "local", "quality": "exact", "context": 0}
    assert (part["quality"], part["shard"]) == ("shard", "key")
    assert (part["experts"], part["experts_all"]) == (12, 16)
    prose = {"domain": "prose", "top1": 0.962, "perplexity_ratio": 1.031, "kl": 0.04}
    assert part["measured"][0] == prose
    assert part["measured"][1]["domain"] == "code"


async def test_a_request_waits_for_the_whole_model_and_not_for_nothing(tmp_path: Path) -> None:
    part, full = tmp_path / "part", tmp_path / "full"
    async with engine(part, answering("part")), engine(full, answering("full")):
        loads = replace(whole(here(full)), ready=False)
        table = bounded([shard(here(part)), loads], wait_s=60)
        async with gateway(tmp_path, table) as running:
            asked = asyncio.create_task(ask(running, "exact"))
            await waiting(running, 1)
            # Others are served meanwhile.
            assert (await ask(running))[1] == b'{"said":"part"}'
            assert not asked.done()
            await tell(running, replace(table, routes=bounded(
                [shard(here(part)), whole(here(full))]).routes))  # fmt: skip
            assert (await asyncio.wait_for(asked, 10))[1] == b'{"said":"full"}'

            await tell(running, table, 3)
            await until(lambda: _generation(running, 3))
            asked = asyncio.create_task(ask(running, "exact"))
            await waiting(running, 1)
            only = replace(table, routes=bounded([shard(here(part))]).routes)
            await tell(running, only, 4)
            late = await asyncio.wait_for(asked, 10)
            assert error(late)["code"] == "quality_unavailable"


async def _generation(running: Running, wanted: int) -> bool:
    return await running.metric("meshd_gateway_table_generation") == wanted


async def test_a_wait_for_the_whole_model_is_told_as_one(tmp_path: Path) -> None:
    """Not as one for a slot of a shard, which it would not take."""
    part = tmp_path / "part"
    loads = replace(whole(here(tmp_path / "full")), ready=False, since_s=1.0)
    heads, body = {"X-Mesh-Quality": "exact"}, {**BODY, "stream": True}
    async with (
        engine(part, answering()),
        gateway(tmp_path, bounded([shard(here(part)), loads], wait_s=60)) as running,
        asyncio.timeout(10),
        running.http.post(running.base + CHAT, json=body, headers=heads) as answer,
    ):
        comment = await answer.content.readline()
        assert comment.startswith(b": waiting for m: loading")


async def test_a_conversation_has_the_same_shard_wherever_it_is_asked(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(tmp_path, name)) for name in "abc"]
        engines = {}
        for number, one in enumerate(nodes):
            path = tmp_path / f"{number}.sock"
            engines[one.id] = await stack.enter_async_context(engine(path, answering(one.id)))
        for me in nodes:
            targets = [
                shard(one.own(engines[one.id].path) if one is me else one.seen(), key=one.id)
                for one in nodes
            ]
            await me.tell(bounded(targets, nodes))
        homes = {}
        for number in range(12):
            body = {**BODY, "session_id": f"s{number}"}
            (home,) = {(await ask(at, body=body))[2]["X-Mesh-Node"] for at in nodes}
            homes[number] = home
        assert len({*homes.values()}) > 1
        gone = homes[0]
        left = [one for one in nodes if one.id != gone]
        for me in left:
            targets = [
                shard(one.own(engines[one.id].path) if one is me else one.seen(), key=one.id)
                for one in left
            ]
            await me.tell(bounded(targets, left))
        for number, home in homes.items():
            body = {**BODY, "session_id": f"s{number}"}
            (now,) = {(await ask(at, body=body))[2]["X-Mesh-Node"] for at in left}
            assert (now == home) is (home != gone)


# -- streams ------------------------------------------------------------------------------------


def _had(count: int = 3) -> list[bytes]:
    """The recorded chat up to the event with the so-manyth text."""
    events, texts = events_of(recordings()["chat"].whole.encode()), 0
    for place, one in enumerate(events, 1):
        texts += bool(heard(one).text)
        if texts == count:
            return events[:place]
    raise AssertionError("so many are not in it")


def _dying(events: list[bytes]) -> Script:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + b"".join(map(chunk, events)))
        call.reset()

    return script


def _going_on(events: list[bytes], asked: list[bytes]) -> Script:
    rest = recordings()["chat"].rests[len(events)]

    async def script(call: Call) -> None:
        asked.append(call.body)
        await streaming([rest.stream.encode()])(call)

    return script


@pytest.mark.parametrize("second", ["shard", "exact"])
@pytest.mark.parametrize("apart", [False, True])
async def test_a_stream_goes_on_with_another_shard_and_says_its_quality(
    tmp_path: Path, second: str, apart: bool
) -> None:
    """:param apart: the engines are on other nodes than the gateway."""
    had, asked, recorded = _had(), list[bytes](), recordings()["chat"]
    first_path, next_path = tmp_path / "one", tmp_path / "two"
    async with AsyncExitStack() as stack:
        # The first one is said to be dead, so it answers no probes.
        await stack.enter_async_context(engine(first_path, _dying(had), healthy=False))
        await stack.enter_async_context(engine(next_path, _going_on(had, asked)))

        def better(target: Target) -> Target:
            return whole(target) if second == "exact" else shard(target, 0.99, "other")

        if apart:
            nodes = [await stack.enter_async_context(node(tmp_path, name)) for name in "abc"]
            a, b, c = nodes
            await b.tell(bounded([shard(b.own(first_path))], nodes, model="tiny"))
            await c.tell(bounded([better(c.own(next_path))], nodes, model="tiny"))
            await a.tell(bounded([shard(b.seen())], nodes, model="tiny", wait_s=60))
            running, later = a.running, better(c.seen())
        else:
            table = bounded([shard(here(first_path))], model="tiny", wait_s=60)
            running = await stack.enter_async_context(gateway(tmp_path, table))
            later = better(here(next_path))
        asking = asyncio.create_task(ask(running, "", CHAT, json.loads(recorded.body)))

        async def waits() -> bool:
            return await running.metric('meshd_num_requests_waiting{model="tiny"}') == 1

        await until(waits)
        if apart:
            await a.tell(bounded([later], nodes, model="tiny", wait_s=60))
        else:
            await tell(running, bounded([later], model="tiny", wait_s=60))
        status, stream, heads = await asyncio.wait_for(asking, 20)
        assert (status, heads["X-Mesh-Quality"]) == (200, SAID)
        got = heard(stream)
        assert got.text == heard(recorded.whole.encode()).text
        now = "exact" if second == "exact" else SAID.replace("0.962", "0.990")
        assert any(
            "x-mesh-resumed: yes" in one and one.endswith(f"x-mesh-quality: {now}")
            for one in got.comments
        ), got.comments
        # From the text: another shard would not say the same again.
        assert [json.loads(one) for one in asked] == [json.loads(recorded.rests[len(had)].body)]
        counted = 'meshd_answers_total{model="tiny",quality="%s"}'
        assert await running.metric(counted % "shard") == 1
        assert await running.metric(counted % "exact") == 0


async def test_a_stream_that_is_to_be_exact_does_not_go_on_with_a_shard(tmp_path: Path) -> None:
    had, asked = _had(), list[bytes]()
    paths = tmp_path / "one", tmp_path / "two"
    body = json.loads(recordings()["chat"].body)
    async with (
        engine(paths[0], _dying(had), healthy=False),
        engine(paths[1], _going_on(had, asked)),
        gateway(
            tmp_path, bounded([whole(here(paths[0])), shard(here(paths[1]))], model="tiny")
        ) as running,
    ):
        _, stream, heads = await ask(running, "exact", CHAT, body, **{"X-Request-Timeout": "0.3"})
        assert heads["X-Mesh-Quality"] == "exact"
        assert stream.startswith(b"".join(had))
        last = json.loads(events_of(stream)[-1].removeprefix(b"data: "))
        assert last["error"]["code"] == "engine_lost"
        assert not asked


async def test_an_engine_s_own_header_is_not_taken_for_ours(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.send(plain("200 OK", b"{}", extra="X-Mesh-Quality: exact\r\n"))

    path = tmp_path / "e.sock"
    async with (
        engine(path, script),
        gateway(tmp_path, bounded([shard(here(path))])) as running,
    ):
        assert (await ask(running))[2]["X-Mesh-Quality"] == SAID
