"""The real `openai` client, the gateway, and a real llama-server with the shipped model."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest

from meshd.engine.locate import SERVER, Place
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from tests.wire.gateway_harness import Running, gateway, until
from tests.wire.mesh_harness import node, table

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "share/models/tiny.gguf"
SLOTS = 2
# Long enough that no endless answer ends by itself within a test.
CONTEXT = 16384


@pytest.fixture
def server(engine: Place) -> Path:
    if not MODEL.exists():
        pytest.skip(f"{MODEL} is not there")
    found = engine.binary(SERVER)
    assert found
    return found


class Llama:
    """One llama-server on a Unix socket."""

    def __init__(self, process: asyncio.subprocess.Process, path: Path) -> None:
        self.process = process
        self.path = path
        self._http = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path)), timeout=aiohttp.ClientTimeout(total=5)
        )

    async def get(self, path: str) -> object:
        async with self._http.get(f"http://engine{path}") as answer:
            answer.raise_for_status()
            return await answer.json()

    async def healthy(self) -> bool:
        assert self.process.returncode is None, "llama-server ended"
        try:
            return await self.get("/health") == {"status": "ok"}
        except aiohttp.ClientError:
            return False

    async def busy(self) -> int:
        slots = await self.get("/slots")
        assert isinstance(slots, list)
        return sum(slot["is_processing"] for slot in slots)

    async def close(self) -> None:
        await self._http.close()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def _llama(server: Path, path: Path) -> AsyncIterator[Llama]:
    process = await asyncio.create_subprocess_exec(
        server, "--model", MODEL, "--host", path, "--alias", "tiny",
        "--ctx-size", str(CONTEXT), "--parallel", str(SLOTS), "--fit", "off", "--threads", "1",
        # No slot gets more than the model was trained for, which is 1024 tokens.
        "--override-kv", f"llama.context_length=int:{CONTEXT}",
        "--cache-ram", "0", "--no-ui", "--slots", "--embeddings", "--pooling", "mean",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    llama = Llama(process, path)
    try:
        await until(llama.healthy, 60)
        yield llama
    finally:
        await llama.close()


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
                async with _llama(server, paths[0]) as one:
                    yield node, [one]
            else:
                async with _llama(server, paths[0]) as one, _llama(server, paths[1]) as two:
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


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot(server: Path, stream: bool) -> None:
    async with _node(server) as (node, [llama]):
        async with _client(node) as client:
            asking = asyncio.create_task(_endless(client, stream=stream))

            async def working() -> bool:
                return await llama.busy() == 1

            await until(working)
            if stream:
                answer = await asking
                await anext(aiter(answer))
                await answer.close()
            asking.cancel()
            left = time.monotonic()

        async def free() -> bool:
            return await llama.busy() == 0

        if stream:
            await until(free)
            assert time.monotonic() - left < 1.0
        else:
            # llama-server looks for a lost client once it had no result of any task for 1 s
            # (HTTP_POLLING_SECONDS), and asking for its slots is a task: so ask seldom.
            await until(free, 6.0, pause_s=1.5)


async def test_an_engine_that_is_killed_ends_its_streams_with_an_error(server: Path) -> None:
    async with _node(server, engines=2) as (node, [one, two]), _client(node) as client:
        streams = [await _endless(client, stream=True, tokens=500) for _ in range(2)]
        for stream in streams:
            await anext(aiter(stream))
        one.process.kill()
        results = await asyncio.gather(*(_drain(stream) for stream in streams))
        assert sorted(results) == ["engine_lost", "length"]
        # And whoever comes now goes to the other one, without noticing.
        for _ in range(4):
            chat = await client.completions.create(model="tiny", prompt="x", max_tokens=2)
            assert chat.choices[0].text
        two.process.kill()
        await two.process.wait()
        with pytest.raises(openai.InternalServerError) as gone:
            await client.completions.create(model="tiny", prompt="x", max_tokens=2)
        assert gone.value.status_code == 503


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
            _llama(server, path) as llama,
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
                return await llama.busy() == 1

            async def free() -> bool:
                return await llama.busy() == 0

            await until(busy)
            await endless.close()
            await until(free)
