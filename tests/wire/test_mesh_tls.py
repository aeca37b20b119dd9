"""Nodes over real sockets: who gets past the handshake, and what a stranger learns on the way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from meshd.mesh.certificates import node_certificate
from meshd.mesh.credentials import Credentials, from_secret, write_tls
from meshd.mesh.identity import of_key
from meshd.mesh.tls import (
    client_context,
    handshake_problem,
    peer_node_id,
    server_context,
    server_name,
)

SECRET = b"tqwf-bq5k-ks37-n2yc-vwzz-4g3a-6mfo-p7xd"
OTHER = b"hchm-b2vd-7k5w-ufqe-o7ox-2wqd-6d4b-6xgv"
MESH_NAME = "the mesh of Example Ltd"
DEADLINE_S = 10.0
REFUSED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)


@dataclass(frozen=True)
class Node:
    held: Credentials
    tls: Path

    @property
    def id(self) -> str:
        return self.held.node_id

    @property
    def name(self) -> str:
        return server_name(self.held.node_id, self.held.mesh_id)


Make = Callable[..., Node]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A node with its files; `made`: how long from now its certificate was made."""
    numbers = iter(range(1000))

    def one(secret: bytes = SECRET, *, made: timedelta = timedelta()) -> Node:
        held = from_secret(of_key(Ed25519PrivateKey.generate()), secret, MESH_NAME)
        folder = tmp_path / f"node{next(numbers)}"
        write_tls(held, folder, datetime.now(UTC) + made)
        return Node(held, folder)

    return one


@dataclass
class Door:
    """What a server saw. It answers one line with the asker's id and its own."""

    node: Node
    port: int = 0
    callers: list[str] = field(default_factory=list)
    strangers: int = 0


@asynccontextmanager
async def open_door(node: Node) -> AsyncIterator[Door]:
    door = Door(node)
    done: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        done.add(task)
        with contextlib.suppress(*REFUSED):
            await answer(reader, writer)
        writer.close()
        with contextlib.suppress(*REFUSED):
            await writer.wait_closed()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            caller = peer_node_id(writer.get_extra_info("ssl_object"))
        except ValueError:
            door.strangers += 1
            return
        door.callers.append(caller)
        await asyncio.wait_for(reader.readline(), DEADLINE_S)
        writer.write(f"hello {caller}, I am {node.id}\n".encode())
        await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(node.tls))
    door.port = server.sockets[0].getsockname()[1]
    try:
        yield door
    finally:
        server.close()
        await asyncio.wait_for(server.wait_closed(), DEADLINE_S)
        if done:
            await asyncio.wait(done, timeout=DEADLINE_S)


async def ask(port: int, context: ssl.SSLContext, name: str | None) -> bytes:
    """One line there, one line back; a client that is refused sees it at the latest here."""
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name), DEADLINE_S
    )
    try:
        writer.write(b"who is there?\n")
        await writer.drain()
        answer = await asyncio.wait_for(reader.readline(), DEADLINE_S)
        if not answer:
            raise ConnectionResetError("hung up without a word")
        return answer
    finally:
        writer.close()
        with contextlib.suppress(*REFUSED):
            await asyncio.wait_for(writer.wait_closed(), DEADLINE_S)


def curious(certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A stranger's context: takes any server, shows what it has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


async def test_two_nodes_know_each_other(make: Make) -> None:
    server, caller = make(), make()
    async with open_door(server) as door:
        answer = await ask(door.port, client_context(caller.tls), server.name)
    assert answer == f"hello {caller.id}, I am {server.id}\n".encode()
    assert door.callers == [caller.id]


async def test_the_caller_can_ask_who_answered(make: Make) -> None:
    server, caller = make(), make()
    async with open_door(server) as door:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", door.port, ssl=client_context(caller.tls), server_hostname=server.name
        )
        connection = writer.get_extra_info("ssl_object")
        assert peer_node_id(connection) == server.id
        assert connection.version() == "TLSv1.3"
        writer.write(b"\n")
        await asyncio.wait_for(reader.readline(), DEADLINE_S)
        writer.close()
        await writer.wait_closed()


async def test_a_stranger_without_a_certificate_gets_nothing(make: Make) -> None:
    async with open_door(make()) as door:
        with pytest.raises(REFUSED):
            await ask(door.port, curious(), None)
        assert (door.callers, door.strangers) == ([], 0)


async def test_a_node_of_another_mesh_gets_nothing(make: Make) -> None:
    stranger = make(OTHER)
    async with open_door(make()) as door:
        with pytest.raises(REFUSED):
            await ask(door.port, curious(stranger.tls / "cert.pem", stranger.tls / "key.pem"), None)
        assert (door.callers, door.strangers) == ([], 0)


async def test_a_stranger_with_a_self_made_authority_gets_nothing(
    make: Make, tmp_path: Path
) -> None:
    """It copies every name out of a real certificate, and the authority's."""
    server = make()
    real = x509.load_pem_x509_certificate((server.tls / "cert.pem").read_bytes())
    own_authority, own_key = Ed25519PrivateKey.generate(), of_key(Ed25519PrivateKey.generate())
    builder = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(real.issuer)
        .public_key(own_key.key.public_key())
        .serial_number(real.serial_number)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
    )
    for extension in real.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    forged, key = tmp_path / "forged.pem", tmp_path / "forged.key"
    forged.write_bytes(builder.sign(own_authority, None).public_bytes(Encoding.PEM))
    key.write_bytes(own_key.pem)
    async with open_door(server) as door:
        with pytest.raises(REFUSED):
            await ask(door.port, curious(forged, key), None)
        assert (door.callers, door.strangers) == ([], 0)


@pytest.mark.parametrize("made", [timedelta(days=-400), timedelta(days=30)])
async def test_a_certificate_outside_its_time_is_refused(make: Make, made: timedelta) -> None:
    late, good = make(made=made), make()
    async with open_door(good) as door:
        with pytest.raises(REFUSED):
            await ask(door.port, client_context(late.tls), good.name)
        assert door.callers == []
    async with open_door(late) as door:
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            await ask(door.port, client_context(good.tls), late.name)
        assert "clock" in handshake_problem(refused.value)


async def test_a_clock_one_day_off_is_no_obstacle(make: Make) -> None:
    ahead, good = make(made=timedelta(days=1)), make()
    async with open_door(good) as door:
        await ask(door.port, client_context(ahead.tls), good.name)
    async with open_door(ahead) as door:
        await ask(door.port, client_context(good.tls), ahead.name)


async def test_a_caller_takes_nobody_else_for_the_node_it_wants(make: Make) -> None:
    wanted, other, caller = make(), make(), make()
    async with open_door(other) as door:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await ask(door.port, client_context(caller.tls), wanted.name)
        assert door.callers == []
    assert handshake_problem(caught.value) == "another node answers at this address"


async def test_a_caller_refuses_another_meshs_server(make: Make) -> None:
    server, caller = make(OTHER), make()
    async with open_door(server) as door:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await ask(door.port, client_context(caller.tls), server.name)
        assert door.callers == []
    assert "another mesh" in handshake_problem(caught.value)


async def test_a_member_cannot_pass_for_another(make: Make) -> None:
    """The certificate is signed by the mesh, but the name in it is not its key's."""
    server, victim, thief = make(), make(), make()
    assert thief.held.authority is not None
    real = x509.load_pem_x509_certificate((victim.tls / "cert.pem").read_bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(real.issuer)
        .public_key(thief.held.identity.key.public_key())
        .serial_number(9)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
    )
    forged = builder.sign(thief.held.authority.key, None)
    (thief.tls / "cert.pem").write_bytes(forged.public_bytes(Encoding.PEM))
    async with open_door(server) as door:
        with pytest.raises(REFUSED):
            await ask(door.port, client_context(thief.tls), server.name)
        assert (door.callers, door.strangers) == ([], 1)


async def test_older_tls_is_refused(make: Make) -> None:
    server, caller = make(), make()
    context = curious(caller.tls / "cert.pem", caller.tls / "key.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with open_door(server) as door:
        with pytest.raises(REFUSED):
            await ask(door.port, context, None)
        assert door.callers == []


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 500, b"\x16\x03\x01"]
)
async def test_what_is_no_tls_gets_no_word(make: Make, data: bytes) -> None:
    server = make()
    async with open_door(server) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(data)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
            # At most a TLS alert (RFC 8446, 6): five bytes of head, two of alert.
            assert len(answer) <= 7
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        assert (door.callers, door.strangers) == ([], 0)
        await ask(door.port, client_context(make().tls), server.name)


async def test_a_stranger_learns_ids_and_nothing_else(make: Make) -> None:
    server = make()
    async with open_door(server) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=curious())
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        with contextlib.suppress(*REFUSED):
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        writer.close()
        with contextlib.suppress(*REFUSED):
            await writer.wait_closed()
    held = x509.load_der_x509_certificate(shown)
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [server.name]
    for secret_word in (MESH_NAME, "Example", socket.gethostname()):
        assert secret_word.encode() not in shown


async def test_a_new_certificate_is_taken_without_a_restart(make: Make) -> None:
    """What a node does when its certificate was renewed: the same context, loaded again."""
    server, caller = make(), make()
    context = server_context(server.tls)
    assert server.held.authority is not None

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await writer.drain()
        writer.close()

    async def serial() -> int:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context(caller.tls), server_hostname=server.name
        )
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert await asyncio.wait_for(reader.readline(), DEADLINE_S) == b"hello\n"
        writer.close()
        await writer.wait_closed()
        return x509.load_der_x509_certificate(shown).serial_number

    listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        before = await serial()
        renewed = node_certificate(
            server.held.authority, server.held.identity.public_key, datetime.now(UTC)
        )
        (server.tls / "cert.pem").write_bytes(renewed)
        context.load_cert_chain(server.tls / "cert.pem", server.tls / "key.pem")
        after = await serial()
    assert after == x509.load_pem_x509_certificate(renewed).serial_number != before


@contextlib.contextmanager
def blocking_door(node: Node) -> Iterator[tuple[str, int]]:
    """One connection only, without asyncio, which hides sessions and alerts."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(DEADLINE_S)

    def serve() -> None:
        raw, _ = listener.accept()
        raw.settimeout(DEADLINE_S)
        with (
            raw,
            contextlib.suppress(*REFUSED),
            server_context(node.tls).wrap_socket(raw, server_side=True) as connection,
        ):
            connection.sendall(b"hello\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        thread.join(DEADLINE_S)
        listener.close()
        assert not thread.is_alive()


def test_no_session_is_resumed_without_a_certificate(make: Make) -> None:
    server, caller = make(), make()
    with (
        blocking_door(server) as place,
        socket.create_connection(place, DEADLINE_S) as raw,
        client_context(caller.tls).wrap_socket(raw, server_hostname=server.name) as connection,
    ):
        assert connection.recv(100) == b"hello\n"
        assert connection.session is None or not connection.session.has_ticket


@pytest.mark.parametrize(
    ("secret", "made", "words"),
    [
        (OTHER, timedelta(), "another mesh"),
        (SECRET, timedelta(days=-400), "clock"),
        (None, timedelta(), "certificate was refused"),
    ],
)
def test_a_refused_caller_is_told_why_at_its_first_read(
    make: Make, secret: bytes | None, made: timedelta, words: str
) -> None:
    if secret is None:
        context = curious()
    else:
        caller = make(secret, made=made)
        context = curious(caller.tls / "cert.pem", caller.tls / "key.pem")
    with (
        blocking_door(make()) as place,
        socket.create_connection(place, DEADLINE_S) as raw,
        context.wrap_socket(raw) as connection,
        pytest.raises(ssl.SSLError) as caught,
    ):
        connection.recv(100)
    assert words in handshake_problem(caught.value)
