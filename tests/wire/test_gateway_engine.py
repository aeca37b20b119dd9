"""The real `openai` client, the gateway, and a real llama-server with the shipped model."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest

from meshd.engine.locate import SERVER, Place
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from tests.wire.gateway_harness import Running, gateway, until
from tests.wire.llama_harness import CONTEXT, MODEL, SLOTS, Llama, llama
from tests.wire.mesh_harness import node, table


@pytest.fixture
def server(engine: Place) -> Path:
    if not MODEL.exists():
        pytest.skip(f"{MODEL} is not there")
    found = engine.binary(SERVER)
    assert found
    return found


@asynccontextmanager
async def _node(server: Path, engines: int = 1) -> AsyncIterator[tuple[Running, list[Llama]]]:
    # Not tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mesh") as name:
        folder = Path(name)
        paths = [folder / f"{number}.sock" for number in range(engines)]
        targets = tuple(Target("local", str(path), True, SLOTS) for path in paths)
        route = Route(
            "tiny", ModelState.READY, targets, aliases=("gpt-4o",), context=CONTEXT // SLOTS
        )
        async with gateway(folder, RoutingTable(generation=1, routes=(route,))) as node:
            if engines == 1:
                async with llama(server, paths[0]) as one:
                    yield node, [one]
            else:
                async with llama(server, paths[0]) as one, llama(server, paths[1]) as two:
                    yield node, [one, two]


def _client(node: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=node.base + "/v1", api_key="none", max_retries=0, timeout=60)


async def test_openais_client_gets_all_it_knows(server: Path) -> None:
    async with _node(server) as (node, _), _client(node) as client:
        models = await client.models.list()
        assert [model.id for model in models.data] == ["tiny"]
        assert (await client.models.retrieve("gpt-4o")).id == "tiny"

        chat = await client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "Say something."}],
            max_tokens=8,
            temperature=0,
        )
        assert chat.model == "tiny"
        assert chat.choices[0].message.content
        assert chat.usage
        assert chat.usage.completion_tokens <= 8

        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Say something."}],
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [part async for part in stream]
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == chat.choices[0].message.content
        assert parts[-1].usage
        assert parts[-1].usage.completion_tokens == chat.usage.completion_tokens

        completion = await client.completions.create(
            model="tiny", prompt="def main():", max_tokens=8, temperature=0
        )
        assert completion.choices[0].text
        streamed = await client.completions.create(
            model="tiny", prompt="def main():", max_tokens=8, temperature=0, stream=True
        )
        texts = [part.choices[0].text async for part in streamed]
        assert len(texts) > 1
        assert "".join(texts) == completion.choices[0].text

        # Base64 is this client's default, floats are what people see.
        packed = await client.embeddings.create(model="tiny", input=["one", "two"])
        plain = await client.embeddings.create(
            model="tiny", input=["one", "two"], encoding_format="float"
        )
        assert len(packed.data) == len(plain.data) == 2
        assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-4)
        assert packed.data[0].embedding != pytest.approx(packed.data[1].embedding, abs=1e-4)


async def test_openais_client_understands_our_refusals(server: Path) -> None:
    async with _node(server) as (node, _), _client(node) as client:
        with pytest.raises(openai.NotFoundError, match="Known models: tiny") as unknown:
            await client.chat.completions.create(model="gpt-9", messages=[])
        assert unknown.value.code == "model_not_found"
        assert unknown.value.request_id
        with pytest.raises(openai.BadRequestError) as too_long:
            await client.completions.create(model="tiny", prompt="word " * CONTEXT)
        assert too_long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="tiny", messages="no list")  # type: ignore[call-overload]


def _endless(client: openai.AsyncOpenAI, *, stream: bool, tokens: int = 100_000):  # type: ignore[no-untyped-def]
    return client.completions.create(
        model="tiny",
        prompt="import",
        max_tokens=tokens,
        stream=stream,
        extra_body={"ignore_eos": True},
    )


async def test_a_client_that_leaves_a_stream_frees_its_slot_at_once(server: Path) -> None:
    async with _node(server) as (node, [one]), _client(node) as client:
        answer = await _endless(client, stream=True)
        await anext(aiter(answer))
        assert await one.busy() == 1
        await answer.close()
        left = time.monotonic()

        async def free() -> bool:
            return await one.busy() == 0

        await until(free)
        assert time.monotonic() - left < 1.0


async def test_a_client_that_leaves_frees_its_slot_when_the_engine_looks(server: Path) -> None:
    """llama-server looks for a lost client once it had no result of any task for a second
    (HTTP_POLLING_SECONDS); asking for its slots is a task, so what it computes is watched instead.
    """
    async with _node(server) as (node, [one]), _client(node) as client:
        began = time.monotonic()
        await _slow(client)
        whole_s = time.monotonic() - began
        asking = asyncio.create_task(_slow(client))
        busy_s = one.computed_s()
        await until(lambda: one.computed_s() > busy_s + 0.1)
        asking.cancel()
        left = time.monotonic()
        last, since = 0.0, left

        def idle() -> bool:
            nonlocal last, since
            if (now := one.computed_s()) != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since > 0.5

        await until(idle, 20)
        assert since - left < min(1.5, 0.7 * whole_s), (since - left, whole_s)


def _slow(client: openai.AsyncOpenAI):  # type: ignore[no-untyped-def]
    """As many tokens as the model can make, each with the odds of many others."""
    return client.completions.create(
        model="tiny",
        prompt="import",
        max_tokens=1000,
        extra_body={"ignore_eos": True, "n_probs": 500},
    )


async def test_an_engine_that_is_killed_ends_its_streams_with_an_error(server: Path) -> None:
    """Nobody goes on with them: the table does not say that the engines have the same weights."""
    async with _node(server, engines=2) as (node, [one, two]), _client(node) as client:
        streams = [await _endless(client, stream=True, tokens=500) for _ in range(2)]
        for stream in streams:
            await anext(aiter(stream))
        one.kill()
        results = await asyncio.gather(*(_drain(stream) for stream in streams))
        assert sorted(results) == ["engine_lost", "length"]
        # And whoever comes now goes to the other one, without noticing.
        for _ in range(4):
            chat = await client.completions.create(model="tiny", prompt="x", max_tokens=2)
            assert chat.choices[0].text
        two.kill()
        await two.dead()
        # Whoever cannot wait until one is started again is told so while it still listens.
        with pytest.raises(openai.InternalServerError) as gone:
            await client.with_options(timeout=1).completions.create(
                model="tiny", prompt="x", max_tokens=2
            )
        assert gone.value.status_code == 503
        # Whoever can is served by the one that is, as systemd does within a second.
        patient = asyncio.create_task(
            client.completions.create(model="tiny", prompt="x", max_tokens=2)
        )
        await one.start()
        assert (await patient).choices[0].text


async def _drain(stream: openai.AsyncStream[openai.types.Completion]) -> str:
    """How it ended: the last reason to finish, or the error's code."""
    reason = ""
    try:
        async for part in stream:
            reason = part.choices[0].finish_reason or reason
    except openai.APIError as error:
        return str(error.code)
    return reason


async def test_a_burst_beyond_the_engines_backlog_is_served(server: Path) -> None:
    async with _node(server) as (node, _), _client(node) as client:
        texts = await asyncio.gather(
            *(
                client.completions.create(model="tiny", prompt=f"{n}", max_tokens=1)
                for n in range(100)
            )
        )
        assert len([text for text in texts if text.choices]) == 100
        for kind in ("refused", "reset", "connect_timeout", "loading"):
            line = f'meshd_upstream_errors_total{{kind="{kind}",model="tiny"}}'
            assert await node.metric(line) == 0


async def test_64_mib_reach_the_engine(server: Path) -> None:
    async with _node(server) as (node, _):
        # A field that the engine reads and does not use: tokenising so much takes it minutes.
        head, tail = b'{"model":"tiny","max_tokens":1,"prompt":"a","user":"', b'"}'
        body = head + b"x" * (64 * 1024 * 1024 - len(head + tail)) + tail
        async with node.http.post(node.base + "/v1/completions", data=_pieces(body)) as answer:
            assert answer.status == 200
            assert (await answer.json())["choices"]


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1 << 20):
        yield body[start : start + (1 << 20)]


async def test_openais_client_is_served_by_another_nodes_engine(server: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mesh") as name:
        folder = Path(name)
        path = folder / "far.sock"
        async with (
            llama(server, path) as far,
            node(folder, "a") as a,
            node(folder, "b") as b,
            _client(a.running) as client,
        ):
            await b.tell(table([b.own(path, slots=SLOTS)], [a, b], model="tiny"))
            await a.tell(table([b.seen(slots=SLOTS)], [a, b], model="tiny"))
            chat = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Say something."}],
                max_tokens=8,
                temperature=0,
            )
            assert chat.choices[0].message.content
            assert chat.usage
            assert chat.usage.completion_tokens > 0
            pieces = []
            async with await client.completions.create(
                model="tiny", prompt="Once upon a time", max_tokens=16, stream=True
            ) as stream:
                async for chunk in stream:
                    pieces += [choice.text for choice in chunk.choices]
            assert "".join(pieces)
            # A client that leaves frees the slot two gateways away.
            endless = await client.completions.create(
                model="tiny",
                prompt="a",
                max_tokens=-1,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for _ in endless:
                break

            async def busy() -> bool:
                return await far.busy() == 1

            async def free() -> bool:
                return await far.busy() == 0

            await until(busy)
            await endless.close()
            await until(free)
