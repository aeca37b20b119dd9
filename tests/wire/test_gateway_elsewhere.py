"""Clients of other machines: keys, TLS, how many there may be, and those that fall silent."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshd.gateway import client_door, serve
from meshd.gateway.crowd import CrowdLimits
from meshd.gateway.routes import Front, ModelState, Route, RoutingTable
from meshd.gateway.table_file import write_table
from tests.wire.elsewhere import Elsewhere, another_machine, exchange, port_of
from tests.wire.gateway_harness import (
    CHAT,
    CHUNKED_END,
    DONE,
    SSE_HEAD,
    Call,
    answering,
    chunk,
    engine,
    event,
    gateway,
    table_of,
    until,
)
from tests.wire.keyed import Keys, bearer

MODELS = "/v1/models"
ALL = "0.0.0.0"


@pytest.fixture
def far() -> Iterator[Elsewhere]:
    with another_machine() as machine:
        yield machine


async def get(
    http: aiohttp.ClientSession, url: str, key: str = ""
) -> tuple[int, dict[str, object]]:
    """Status, and the error if it is one."""
    async with http.get(url, headers=bearer(key) if key else {}) as answer:
        said = json.loads(await answer.read())
        return answer.status, said.get("error", {})


async def test_without_keys_only_this_machine_is_served_and_told_why(
    tmp_path: Path, far: Elsewhere
) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, answering()) as scripted,
        gateway(tmp_path, table_of(path), host=ALL) as node,
        far.client() as http,
    ):
        url = f"http://{far.address}:{port_of(node)}"
        for where in (MODELS, "/healthz", "/readyz", "/metrics"):
            status, error = await get(http, url + where)
            assert (status, error["code"]) == (403, "no_api_keys")
            assert "has no API keys" in str(error["message"])
            assert "meshd keys add NAME" in str(error["message"])
        async with http.post(url + CHAT, json={"model": "m"}) as answer:
            assert answer.status == 403
        assert not scripted.calls
        assert (await node.post({"model": "m"}))[0] == 200


async def test_keys_count_as_soon_as_their_files_change(tmp_path: Path, far: Elsewhere) -> None:
    keys = Keys(tmp_path)
    async with (
        gateway(tmp_path, table_of(tmp_path / "e.sock"), host=ALL, keys=keys.where) as node,
        far.client() as http,
    ):
        url = f"http://{far.address}:{port_of(node)}{MODELS}"

        async def answers(status: int, key: str) -> None:
            async def so() -> bool:
                return (await get(http, url, key))[0] == status

            await until(so, pause_s=0.02)

        assert (await get(http, url))[0] == 403
        alice = keys.add("alice")  # the folder is new, too
        await answers(200, alice)
        status, error = await get(http, url)
        assert (status, error["code"], error["type"]) == (
            401, "invalid_api_key", "authentication_error",
        )  # fmt: skip
        async with http.get(url) as answer:
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        bob = keys.add("bob")
        await answers(200, bob)
        # Nothing of a key is kept, and its holder may ask with either header.
        for file in keys.folder.iterdir():
            assert alice not in file.read_text()
            assert alice.removeprefix("sk-mesh-")[:8] not in file.read_text()
        async with http.get(url, headers={"X-Api-Key": alice}) as answer:
            assert answer.status == 200

        # A slip is said with its place, and takes nobody's key away.
        good = (keys.folder / "bob.yaml").read_text()
        (keys.folder / "bob.yaml").write_text(good + "    rat: 60/min\n")

        async def said() -> bool:
            async with node.http.get(node.base + "/readyz") as answer:
                errors = (await answer.json())["clients"]["errors"]
            return bool(errors) and f"{keys.folder}/bob.yaml:4:5: `rat` is not known" in errors[0]

        await until(said, pause_s=0.02)
        assert [(await get(http, url, key))[0] for key in (alice, bob)] == [200, 200]
        (keys.folder / "bob.yaml").unlink()
        await answers(401, bob)
        assert (await get(http, url, alice))[0] == 200


async def test_an_address_has_so_many_connections_and_this_machine_all(
    tmp_path: Path, far: Elsewhere
) -> None:
    keys = Keys(tmp_path)
    keys.add("alice")
    crowd = CrowdLimits(total=6, each=2)
    last = b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1\r\nConnection: close\r\n\r\n"
    async with (
        gateway(
            tmp_path, table_of(tmp_path / "e.sock"), host=ALL, keys=keys.where, crowd=crowd
        ) as node,
        AsyncExitStack() as stack,
    ):
        port = port_of(node)
        held = []
        for _ in range(2):
            reader, writer = await stack.enter_async_context(far.connection(port))
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n")
            assert b"200" in await asyncio.wait_for(reader.readline(), 10)
            held.append(writer)
        async with far.connection(port) as pair:
            answer = await exchange(pair, last)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in answer
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "gateway_overloaded"
        assert f"2 connections from {far.own}" in error["message"]
        assert (await get(node.http, node.base + MODELS))[0] == 200
        held[0].close()

        async def room() -> bool:
            async with far.connection(port) as pair:
                return b"HTTP/1.1 200" in await exchange(pair, last)

        await until(room, pause_s=0.05)


async def test_a_client_that_falls_silent_is_forgotten(
    tmp_path: Path, far: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half open: its machine lost power, no FIN, no RST. It must not hold its place for ever."""
    monkeypatch.setattr(client_door, "_ASK_S", 1)
    monkeypatch.setattr(client_door, "_PATIENCE_MS", 1500)
    keys = Keys(tmp_path)
    alice = keys.add("alice")
    table = RoutingTable(
        generation=1, routes=(Route("m", ModelState.WAITING),), front=Front(wait_s=3600)
    )

    async def waiting(count: int) -> None:
        async def so_many() -> bool:
            return await node.metric('meshd_num_requests_waiting{model="m"}') == count

        await until(so_many, 30, pause_s=0.05)

    async with gateway(tmp_path, table, host=ALL, keys=keys.where) as node:
        body = b'{"model":"m"}'
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: {far.address}\r\nAuthorization: Bearer {alice}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        async with far.connection(port_of(node)) as (_, writer):
            writer.write(head.encode() + body)
            await waiting(1)
            await asyncio.to_thread(far.fall_silent)
            await waiting(0)


# -- TLS ----------------------------------------------------------------------------------------


def certificate(folder: Path, address: str, serial: int) -> Front:
    """A self-signed one, as files; the settings that name them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    front = Front(certificate=str(folder / "cert.pem"), key=str(folder / "key.pem"), wait_s=0)
    Path(front.key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    Path(front.certificate).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return front


async def serial_shown(far: Elsewhere, port: int) -> int:
    """Of the certificate that a new connection gets; 0 when it gets none."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with far.connection(port, context) as (_, writer):
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    except (OSError, ssl.SSLError):
        return 0
    return x509.load_der_x509_certificate(shown).serial_number


async def test_tls_for_other_machines_follows_a_renewed_certificate(
    tmp_path: Path, far: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_CERTIFICATE_LOOK_S", 0.1)
    keys = Keys(tmp_path)
    alice = keys.add("alice")
    front = certificate(tmp_path, far.address, 11)
    path, finish = tmp_path / "e.sock", asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")))
        await finish.wait()
        await call.send(chunk(event("two") + DONE) + CHUNKED_END)

    table = table_of(path, front=front)
    trusting = ssl.create_default_context(cafile=front.certificate)
    async with (
        engine(path, script),
        gateway(tmp_path, table, host=ALL, keys=keys.where) as node,
        far.client(trusting) as https,
        far.client() as http,
    ):
        port = port_of(node)
        url = f"https://{far.address}:{port}"
        assert (await get(https, url + MODELS))[0] == 401
        assert (await get(https, url + MODELS, alice))[0] == 200
        # A key must not travel where others can listen in.
        with pytest.raises((aiohttp.ClientError, OSError)):
            await get(http, url.replace("https", "http") + MODELS, alice)
        # This machine needs none.
        assert (await get(node.http, node.base + MODELS))[0] == 200

        async with https.post(
            url + CHAT, json={"model": "m", "stream": True}, headers=bearer(alice)
        ) as running:
            assert await running.content.readany() == event("one")
            certificate(tmp_path, far.address, 12)

            async def renewed() -> bool:
                return await serial_shown(far, port) == 12

            await until(renewed, pause_s=0.05)
            finish.set()
            assert await running.read() == event("two") + DONE

        # One that was cut short leaves the last good one in use, and is said.
        (tmp_path / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")

        async def said() -> bool:
            async with node.http.get(node.base + "/readyz") as answer:
                errors = (await answer.json())["clients"]["errors"]
            return bool(errors) and front.certificate in errors[0]

        await until(said, pause_s=0.05)
        assert await serial_shown(far, port) == 12


async def test_where_tls_is_wanted_and_cannot_be_had_nobody_gets_in(
    tmp_path: Path, far: Elsewhere
) -> None:
    keys = Keys(tmp_path)
    alice = keys.add("alice")
    front = Front(certificate=str(tmp_path / "none.pem"), key=str(tmp_path / "none.key"))
    async with (
        gateway(
            tmp_path, table_of(tmp_path / "e.sock", front=front), host=ALL, keys=keys.where
        ) as node,
        far.client() as http,
    ):
        assert await serial_shown(far, port_of(node)) == 0
        with pytest.raises((aiohttp.ClientError, OSError)):
            await get(http, f"http://{far.address}:{port_of(node)}{MODELS}", alice)
        async with node.http.get(node.base + "/readyz") as answer:
            assert "none.pem" in (await answer.json())["clients"]["errors"][0]
        # It is followed as soon as it is there.
        fresh = certificate(tmp_path, far.address, 5)
        table = table_of(tmp_path / "e.sock", front=fresh, generation=2)
        await asyncio.to_thread(write_table, node.routes, replace(table, generation=2))

        async def shown() -> bool:
            return await serial_shown(far, port_of(node)) == 5

        await until(shown, pause_s=0.05)


async def test_a_handshake_that_never_ends_is_ended(
    tmp_path: Path, far: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_door, "_HANDSHAKE_S", 0.3)
    front = certificate(tmp_path, far.address, 7)
    async with gateway(tmp_path, table_of(tmp_path / "e.sock", front=front), host=ALL) as node:
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"):
            async with far.connection(port_of(node)) as pair:
                assert b"HTTP" not in await exchange(pair, sent)
        assert await serial_shown(far, port_of(node)) == 7
