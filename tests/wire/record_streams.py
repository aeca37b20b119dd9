"""Records what llama-server streams, whole and gone on with from each event, for the unit tests.

    python -m tests.wire.record_streams

A recording holds the request, one stream of it, another of the same (as a replay gets it), and for
each number of events that a client may have got the request that `continuation` makes of it and
the stream that answers that. When `continuation` asks in other words, record anew.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec

from meshd.engine.locate import SERVER, in_root, require
from meshd.gateway.continuation import Continuation, continuation
from meshd.gateway.transcript import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Transcript
from tests.unit.streams import RECORDINGS, Recording, Rest, events_of
from tests.wire.llama_harness import THINKING, Llama, llama

_LS = "What does the ls command do?"
_ASKS = [{"role": "user", "content": _LS}]
_THINKS = {"thinking_budget_tokens": 3}
# name, path, whether the model thinks, what else is asked
_REQUESTS: list[tuple[str, str, bool, dict[str, object]]] = [
    ("chat", CHAT, False, {"messages": _ASKS, "stream_options": {"include_usage": True}}),
    ("chat, cut by its limit", CHAT, False,
     {"messages": _ASKS, "max_tokens": 6, "ignore_eos": True}),
    ("chat with thoughts", CHAT, True,
     {"messages": _ASKS, "max_tokens": 32, "timings_per_token": True, **_THINKS}),
    ("completions", COMPLETIONS, False, {"prompt": "def main():", "max_tokens": 8}),
    ("messages", MESSAGES, False, {"messages": _ASKS, "max_tokens": 32}),
    ("messages with thoughts", MESSAGES, True,
     {"messages": _ASKS, "max_tokens": 32, "thinking": {"type": "enabled", "budget_tokens": 3}}),
    ("responses", RESPONSES, False, {"input": _LS}),
    ("responses with thoughts", RESPONSES, True,
     {"input": _LS, "max_output_tokens": 32, **_THINKS}),
]  # fmt: skip


async def _record(engine: Llama, name: str, path: str, request: dict[str, object]) -> Recording:
    body = msgspec.json.encode({"model": "tiny", "stream": True, "temperature": 0, **request})
    whole = (await engine.post(path, body)).decode()
    again = (await engine.post(path, body)).decode()
    rests: dict[int, Rest] = {}
    events = events_of(whole.encode())
    for sent in range(1, len(events)):
        transcript = Transcript(path)
        transcript.feed(b"".join(events[:sent]))
        plan = continuation(body, transcript.told, replay=False)
        if isinstance(plan, Continuation):
            answer = await engine.post(path, plan.body)
            rests[sent] = Rest(plan.body.decode(), answer.decode())
    return Recording(name, path, body.decode(), whole, again, rests)


async def main() -> None:
    server = (in_root(Path(".cache/engine")) or require()).binary(SERVER)
    assert server
    recordings = []
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        for thinks in (False, True):
            options = ("--chat-template-file", str(THINKING)) if thinks else ()
            async with llama(server, Path(folder) / f"{thinks}.sock", options) as engine:
                recordings += [
                    await _record(engine, name, path, request)
                    for name, path, its, request in _REQUESTS
                    if its is thinks
                ]
    RECORDINGS.write_bytes(msgspec.json.format(msgspec.json.encode(recordings), indent=1) + b"\n")


if __name__ == "__main__":
    asyncio.run(main())
