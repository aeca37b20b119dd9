"""Prompts, answers and keys are in no log, whatever becomes of a request.

The gateway is a process of its own here, so that all that it writes is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import aiohttp

from meshd.gateway.routes import Front
from meshd.gateway.table_file import write_table
from tests.wire.gateway_harness import (
    CHAT,
    SSE_HEAD,
    Call,
    chunk,
    engine,
    event,
    plain,
    table_of,
    until,
)
from tests.wire.keyed import Keys
from tests.wire.test_gateway_process import _free_port, _gateway

PROMPT, ANSWER = "marker-of-a-prompt", "marker-of-an-answer"


async def _engine(call: Call) -> None:
    """Does what the request says, and repeats the prompt where an engine could."""
    said = json.loads(call.body).get("do", "answer")
    quoting = b'{"error":{"message":"bad prompt: %s","type":"x"}}' % PROMPT.encode()
    match said:
        case "answer":
            await call.send(plain("200 OK", b'{"said":"%s"}' % ANSWER.encode()))
        case "refuse":
            await call.send(plain("400 Bad Request", quoting))
        case "fail":
            await call.send(plain("500 Internal Server Error", quoting))
        case "die":
            call.reset()
        case "nonsense":
            await call.send(b"HTTP/1.1 200 %s\r\nX\r\n\r\n" % PROMPT.encode())
            call.writer.close()
        case "die in a stream":
            await call.send(SSE_HEAD + chunk(event(ANSWER)))
            call.reset()
        case "end too early":
            await call.send(SSE_HEAD + chunk(event(ANSWER)) + b"0\r\n\r\n")
        case "fail in a stream":
            await call.send(SSE_HEAD + chunk(b"data: " + quoting + b"\n\n") + b"0\r\n\r\n")


async def test_nothing_that_clients_or_engines_say_is_logged(tmp_path: Path) -> None:
    path, port, log = tmp_path / "e.sock", _free_port(), tmp_path / "log"
    keys = Keys(tmp_path)
    alice = keys.add("alice")
    front = Front(wait_s=0, local_keys=True)
    write_table(tmp_path / "routes.json", table_of(path, front=front, max_body_bytes=4096))
    messages = [{"role": "user", "content": PROMPT}]
    good = {"Authorization": f"Bearer {alice}"}
    statuses: list[int] = []

    with log.open("wb") as file:
        async with (
            engine(path, _engine),
            _gateway(
                tmp_path,
                ["--listen", f"127.0.0.1:{port}", "--keys", str(keys.folder)],
                f"http://127.0.0.1:{port}",
                stderr=file,
                stdout=file,
                env={**os.environ, "MESHD_LOG": "debug", "PYTHONASYNCIODEBUG": "1"},
            ) as node,
        ):

            async def post(body: object, path_: str = CHAT, **heads: str) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                with contextlib.suppress(aiohttp.ClientError):
                    async with node.http.post(
                        node.base + path_, data=data, headers={**good, **heads}
                    ) as answer:
                        statuses.append(answer.status)
                        await answer.read()

            async def ready() -> bool:
                async with node.http.get(node.base + "/readyz", headers=good) as answer:
                    return answer.status == 200

            for do in ("answer", "refuse", "fail", "nonsense", "die", "die in a stream",
                       "end too early", "fail in a stream"):  # fmt: skip
                for stream in (False, True):
                    body = {"model": "m", "messages": messages, "do": do, "stream": stream}
                    await post(body)
                    await until(ready, pause_s=0.02)  # an engine that failed is asked anew
            await post({"model": PROMPT, "messages": messages})
            await post({"model": [PROMPT]})
            await post(b'{"model": "m", "messages": "%s' % PROMPT.encode())
            await post(b'{"model": "m", %s}' % PROMPT.encode())
            await post(b'{"model": "m", "x": "%s"}' % (PROMPT.encode() * 1000))
            await post({"model": "m"}, f"/{PROMPT}?{PROMPT}")
            await post({"model": "m"}, Authorization="Bearer sk-mesh-wrong-key")
            await post({"model": "m"}, Origin=f"https://{PROMPT}.example", Authorization="")
            await post({"model": "m"}, **{"X-Request-Id": f"{PROMPT} with blanks"})
            # Not HTTP, with the prompt where a parser would quote it.
            for raw in (f"{PROMPT}\r\n\r\n", f"GET / HTTP/1.1\r\n{PROMPT}\r\n\r\n",
                        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {alice}"
                        f"\r\nTransfer-Encoding: chunked\r\n\r\n{PROMPT}\r\n"):  # fmt: skip
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(raw.encode())
                assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"400"
                writer.transport.abort()
            node.process.send_signal(signal.SIGTERM)
            await node.ended()
    said = log.read_text()
    assert {200, 400, 401, 404, 413, 500, 503} <= set(statuses)
    assert said.count(f"endpoint={CHAT}") >= 20, "the log tells of each request"
    for secret in (PROMPT, ANSWER, alice, "sk-mesh-wrong-key"):
        assert secret not in said


async def test_keys_may_come_as_a_credential(tmp_path: Path) -> None:
    """As systemd hands them to mesh-gateway.service with ImportCredential=mesh.keys*."""
    path, port = tmp_path / "e.sock", _free_port()
    keys = Keys(tmp_path)
    alice = keys.add("alice")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (keys.folder / "alice.yaml").rename(credentials / "mesh.keys")
    (credentials / "mesh.keys").chmod(0o400)
    write_table(tmp_path / "routes.json", table_of(path, front=Front(wait_s=0, local_keys=True)))
    async with _gateway(
        tmp_path,
        ["--listen", f"127.0.0.1:{port}", "--keys", str(keys.folder)],
        f"http://127.0.0.1:{port}",
        env={**os.environ, "CREDENTIALS_DIRECTORY": str(credentials)},
    ) as node:
        for key, status in ((alice, 200), ("", 401), (alice[:-1], 401)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            async with node.http.get(node.base + "/v1/models", headers=headers) as answer:
                assert answer.status == status
