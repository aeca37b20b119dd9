"""Engines are killed in the middle of their answers, and clients see one stream.

Two real llama-servers with the shipped model behind one gateway; `kill -9` for every death.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from meshd.engine.locate import SERVER, Place
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from tests.unit.streams import Heard, events_of, heard
from tests.wire.gateway_harness import Running, gateway, until
from tests.wire.llama_harness import CONTEXT, MODEL, SLOTS, Llama, llama
from tests.wire.mesh_harness import Node, table
from tests.wire.mesh_harness import node as mesh_node

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
TOKENS = 320
ASKS = [{"role": "user", "content": "Write a Python function that reads a file."}]
# Answers that do not end by themselves; Messages and Responses cannot be asked for that.
ENDLESS = ("--ignore-eos",)
_NODE = re.compile("^: x-mesh-node: ([^,]+)", re.MULTILINE)
KILLS = range(1, 200, 10)
FEWER = (1, 70, 180)


@dataclass
class Pair:
    """A gateway and its engines, by the name of the node that each is said to be."""

    node: Running
    engines: dict[str, Llama]

    async def restart(self) -> None:
        """All engines run."""
        for engine in self.engines.values():
            if engine.killed:
                await engine.start()


@pytest.fixture
def server(engine: Place) -> Path:
    if not MODEL.exists():
        pytest.skip(f"{MODEL} is not there")
    found = engine.binary(SERVER)
    assert found
    return found


@asynccontextmanager
async def _pair(
    server: Path,
    options: Sequence[str] = (),
    *,
    weights: Sequence[str] = ("same", "same"),
) -> AsyncIterator[Pair]:
    # Not tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mesh") as name:
        folder = Path(name)
        paths = {f"n{number}": folder / f"{number}.sock" for number in range(len(weights))}
        targets = tuple(
            Target(node, str(path), True, SLOTS, weights=content)
            for (node, path), content in zip(paths.items(), weights, strict=True)
        )
        route = Route("tiny", ModelState.READY, targets, context=CONTEXT // SLOTS)
        async with AsyncExitStack() as stack:
            engines = {
                node: await stack.enter_async_context(llama(server, path, options))
                for node, path in paths.items()
            }
            routes = RoutingTable(generation=1, routes=(route,))
            yield Pair(await stack.enter_async_context(gateway(folder, routes)), engines)


@dataclass
class Told:
    """:ivar killed: the nodes that answered when their engines were killed."""

    stream: bytes
    headers: dict[str, str]
    killed: list[str]

    @property
    def heard(self) -> Heard:
        return heard(self.stream)


async def _ask(
    pair: Pair,
    path: str,
    request: dict[str, Any],
    *kills: int,
    headers: dict[str, str] | None = None,
    how: Callable[[Llama], None] = Llama.kill,
) -> Told:
    """:param kills: the engine that answers is killed after so many events with text; the next
    one, once it is known, after so many in all.
    :param how: it is killed.
    """
    body = {"model": "tiny", "stream": True, **request}
    async with pair.node.http.post(pair.node.base + path, json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.read()
        told = Told(b"", dict(answer.headers), [])
        async for piece in answer.content.iter_any():
            told.stream += piece
            nodes = [answer.headers["X-Mesh-Node"], *_NODE.findall(told.stream.decode())]
            for node, at in zip(nodes[len(told.killed) :], kills[len(told.killed) :], strict=False):
                if _texts(told.stream) >= at:
                    how(pair.engines[node])
                    told.killed.append(node)
        return told


def _texts(stream: bytes) -> int:
    whole, _, _ = stream.rpartition(b"\n\n")
    return sum(bool(one.text or one.reasoning) for one in map(heard, events_of(whole)))


def _resumed(told: Told) -> bool:
    return any(comment.endswith("was lost, resuming") for comment in told.heard.comments)


CASES: dict[str, tuple[str, dict[str, Any], Sequence[int]]] = {
    "chat": (
        CHAT,
        {"messages": ASKS, "max_tokens": TOKENS, "temperature": 0,
         "stream_options": {"include_usage": True}},
        KILLS,
    ),
    "chat, sampled with a seed": (
        CHAT,
        {"messages": ASKS, "max_tokens": TOKENS, "temperature": 1.0, "seed": 7,
         "stream_options": {"include_usage": True}},
        FEWER,
    ),
    "completions": (
        COMPLETIONS,
        {"prompt": "def main():", "max_tokens": TOKENS, "temperature": 0},
        FEWER,
    ),
    "messages": (
        MESSAGES, {"messages": ASKS, "max_tokens": TOKENS, "temperature": 0}, FEWER,
    ),
    "responses": (
        RESPONSES, {"input": ASKS, "max_output_tokens": TOKENS, "temperature": 0}, FEWER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_a_kill_at_any_token_is_not_seen_in_the_text(server: Path, case: str) -> None:
    path, request, kills = CASES[case]
    async with _pair(server, ENDLESS) as pair:
        unbroken = await _ask(pair, path, request)
        assert not _resumed(unbroken)
        for kill_at in kills:
            await pair.restart()
            told = await _ask(pair, path, request, kill_at)
            assert _resumed(told)
            _same(told, unbroken)
            assert [told.headers["X-Mesh-Node"]] == told.killed
            [other] = pair.engines.keys() - told.killed
            signs = f": x-mesh-node: {other}, x-mesh-attempts: 2, x-mesh-resumed: yes"
            signs += ", x-mesh-quality: exact"
            assert signs in told.heard.comments
        resumed = 'meshd_streams_resumed_total{outcome="resumed"}'
        assert await pair.node.metric(resumed) == len(kills)


def _same(told: Told, unbroken: Told, attempts: int = 1) -> None:
    got, whole = told.heard, unbroken.heard
    assert (got.text, got.reasoning) == (whole.text, whole.reasoning)
    assert (got.frames, got.finish, got.said) == (whole.frames, whole.finish, whole.said)
    assert got.usage == whole.usage
    assert len(got.ids) == len(whole.ids)
    for name, value in (("Resumed", "no"), ("Attempts", str(attempts)), ("Quality", "exact")):
        assert told.headers[f"X-Mesh-{name}"] == value


# -- where it cannot go on ----------------------------------------------------------------------

SAMPLED = {"temperature": 1.0}
# What each protocol is asked for an endless answer that another engine could go on with.
ENDS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": ASKS},
    COMPLETIONS: {"prompt": "def main():"},
    MESSAGES: {"messages": ASKS, "max_tokens": 2000},
    RESPONSES: {"input": ASKS},
}


def _error(path: str, stream: bytes) -> dict[str, Any]:
    """The error that must be the last event, well-formed in this protocol's words."""
    events = events_of(stream)
    assert stream.endswith(b"\n\n")
    lines = events[-1].decode().strip().splitlines()
    document: dict[str, Any] = json.loads(lines[-1].removeprefix("data: "))
    if path in (CHAT, COMPLETIONS):
        assert len(lines) == 1
    else:
        assert lines[0] == "event: error"
        assert document["type"] == "error"
    if path == RESPONSES:
        assert {"code", "message", "param", "sequence_number"} <= set(document)
    if path == MESSAGES:
        assert document["error"]["type"] == "api_error"
        assert document["request_id"]
    else:
        assert set(document["error"]) >= {"message", "type", "param", "code"}
    before = heard(b"".join(events[:-1]))
    assert "[DONE]" not in before.frames
    assert not before.finish
    error: dict[str, Any] = document["error"]
    return error


@pytest.mark.parametrize("path", ENDS)
async def test_without_a_replica_the_stream_ends_in_an_error_within_the_clients_patience(
    server: Path, path: str
) -> None:
    async with _pair(server, ENDLESS, weights=("a", "b")) as pair:
        patience = {"X-Request-Timeout": "0.5"}
        told = await _ask(pair, path, ENDS[path], 5, headers=patience)
        error = _error(path, told.stream)
        assert error["code"] == "engine_lost"
        assert "none with the same weights" in error["message"]
        no_replica = 'meshd_streams_resumed_total{outcome="no_replica"}'
        assert await pair.node.metric(no_replica) == 1


async def test_constraints_without_a_seed_end_in_an_error_and_with_one_go_on(server: Path) -> None:
    request = {**ENDS[CHAT], **SAMPLED, "grammar": "root ::= [a-z ]+", "max_tokens": TOKENS}
    async with _pair(server, ENDLESS) as pair:
        told = await _ask(pair, CHAT, request, 10)
        error = _error(CHAT, told.stream)
        assert "constraints cannot begin in the middle without a seed" in error["message"]
        await pair.restart()
        unbroken = await _ask(pair, CHAT, {**request, "seed": 3})
        told = await _ask(pair, CHAT, {**request, "seed": 3}, 10)
        assert _resumed(told)
        _same(told, unbroken)


async def test_without_a_seed_it_goes_on_from_the_text(server: Path) -> None:
    """The request does not say that it is greedy, so nothing is replayed. A prompt is not computed
    bit by bit like tokens, so in the end the text may be another one.
    """
    request = {**ENDS[CHAT], "max_tokens": 200, "stream_options": {"include_usage": True}}
    async with _pair(server, (*ENDLESS, "--temp", "0")) as pair:
        unbroken = (await _ask(pair, CHAT, request)).heard
        told = await _ask(pair, CHAT, request, 20)
        assert _resumed(told)
        before, _, rest = told.stream.partition(b": x-mesh-node")
        assert b": resuming" not in rest
        said = heard(before).text
        assert unbroken.text.startswith(said)
        got = told.heard
        assert got.text.startswith(said)
        assert len(got.text) > len(said)
        assert (got.frames, got.finish) == (unbroken.frames, unbroken.finish)
        assert got.usage == unbroken.usage
        assert len(got.ids) == 1


@pytest.mark.parametrize("second_at", [0, 200])
async def test_a_request_that_cost_two_engines_is_given_up(server: Path, second_at: int) -> None:
    """The second one dies in its replay, or after it."""
    request = {**ENDS[CHAT], "temperature": 0, "max_tokens": 1000}
    async with _pair(server, ENDLESS, weights=("same",) * 3) as pair:
        unbroken = await _ask(pair, CHAT, request)
        told = await _ask(pair, CHAT, request, 40, second_at)
        assert _error(CHAT, told.stream)["code"] == "engine_lost"
        got = heard(b"".join(events_of(told.stream)[:-1]))
        assert unbroken.heard.text.startswith(got.text)
        assert sum(comment.endswith("was lost, resuming") for comment in got.comments) == 1
        assert sum(engine.killed for engine in pair.engines.values()) == 2
        failed = 'meshd_streams_resumed_total{outcome="failed"}'
        assert await pair.node.metric(failed) == 1


async def test_an_engine_that_is_started_again_goes_on_itself(server: Path) -> None:
    request = {**ENDS[CHAT], "temperature": 0, "max_tokens": TOKENS}
    async with _pair(server, ENDLESS, weights=("same",)) as pair:
        unbroken = await _ask(pair, CHAT, request)
        asking = asyncio.create_task(_ask(pair, CHAT, request, 50))
        [engine] = pair.engines.values()
        await until(lambda: engine.killed)
        await engine.start()
        told = await asking
        assert _resumed(told)
        _same(told, unbroken)


async def test_a_death_before_the_first_byte_is_not_seen_at_all(server: Path) -> None:
    request = {**ENDS[CHAT], "temperature": 0, "max_tokens": 20}
    async with _pair(server, ENDLESS) as pair:
        unbroken = await _ask(pair, CHAT, request)
        for engine in pair.engines.values():
            engine.stop()
        asking = asyncio.create_task(_ask(pair, CHAT, request))
        running = 'meshd_num_requests_running{model="tiny",place="here"}'

        async def asked() -> bool:
            return await pair.node.metric(running) == 1

        await until(asked)
        # Of two idle ones the first in the table is asked.
        pair.engines["n0"].kill()
        pair.engines["n1"].go_on()
        told = await asking
        _same(told, unbroken, attempts=2)
        assert told.headers["X-Mesh-Node"] == "n1"
        assert not told.heard.comments


# -- over other nodes ---------------------------------------------------------------------------


@asynccontextmanager
async def _mesh(server: Path) -> AsyncIterator[tuple[Node, list[Node], Pair]]:
    """A node without an engine, and two that have one each."""
    with tempfile.TemporaryDirectory(prefix="mesh") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            front, *nodes = [
                await stack.enter_async_context(mesh_node(folder, one)) for one in ("a", "b", "c")
            ]
            engines = {}
            for one in nodes:
                path = one.member.folder / "e.sock"
                engines[one.id] = await stack.enter_async_context(llama(server, path, ENDLESS))
                await one.tell(table([_same_weights(one.own(path))], [front, *nodes], model="tiny"))
            await front.tell(_seen(front, nodes))
            yield front, nodes, Pair(front.running, engines)


def _same_weights(target: Target) -> Target:
    return replace(target, weights="same")


def _seen(front: Node, nodes: Sequence[Node], *suspects: str) -> RoutingTable:
    targets = [_same_weights(one.seen(suspect=one.id in suspects)) for one in nodes]
    return table(targets, [front, *nodes], model="tiny")


@pytest.mark.parametrize("case", ["chat", "messages"])
async def test_a_kill_on_another_node_is_not_seen_in_the_text(server: Path, case: str) -> None:
    path, request, kills = CASES[case]
    async with _mesh(server) as (_, _, pair):
        unbroken = await _ask(pair, path, request)
        for kill_at in kills[:2]:
            await pair.restart()
            told = await _ask(pair, path, request, kill_at)
            assert _resumed(told)
            # The node whose engine has just come back may not know it yet.
            _same(told, unbroken, attempts=int(told.headers["X-Mesh-Attempts"]))


async def test_an_engine_that_hangs_on_another_node_is_left_when_the_table_says_so(
    server: Path,
) -> None:
    path, request, _ = CASES["chat"]
    async with _mesh(server) as (front, nodes, pair):
        unbroken = await _ask(pair, path, request)
        stopped = asyncio.get_running_loop().create_future()

        def stop(engine: Llama) -> None:
            engine.stop()
            stopped.set_result(next(one for one in pair.engines if pair.engines[one] is engine))

        asking = asyncio.create_task(_ask(pair, path, request, 50, how=stop))
        # It is said only once, and at once.
        await front.tell(_seen(front, nodes, await stopped))
        told = await asyncio.wait_for(asking, 20)
        assert _resumed(told)
        _same(told, unbroken)
