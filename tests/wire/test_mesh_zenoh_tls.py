"""The mesh's certificates on its other transport: Zenoh over QUIC, with the config that we ship."""

from __future__ import annotations

import json
import queue
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zenoh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshd.mesh.credentials import Credentials, from_secret, write_tls
from meshd.mesh.identity import of_key
from meshd.mesh.zenoh_config import SessionPlan, config_text, session_zid

SECRET = b"tqwf-bq5k-ks37-n2yc-vwzz-4g3a-6mfo-p7xd"
OTHER = b"hchm-b2vd-7k5w-ufqe-o7ox-2wqd-6d4b-6xgv"
KEY = "meshd/test/word"
DEADLINE_S = 10.0

Node = tuple[Credentials, Path]
Make = Callable[..., Node]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    numbers = iter(range(100))

    def one(secret: bytes = SECRET, *, made: timedelta = timedelta()) -> Node:
        held = from_secret(of_key(Ed25519PrivateKey.generate()), secret, "mesh")
        folder = tmp_path / f"node{next(numbers)}"
        write_tls(held, folder, datetime.now(UTC) + made)
        return held, folder

    return one


def config(node: Node, *, connect: tuple[str, ...] = ()) -> dict[str, object]:
    """The configuration of a core, or of a client where there is something to connect to."""
    held, folder = node
    zid = session_zid(held.mesh_id, held.node_id, secrets.token_bytes(3))
    plan = SessionPlan(zid=zid, core=not connect, tls=folder, connect=connect)
    content: dict[str, object] = json.loads(config_text(plan))
    return content


def open_session(content: dict[str, object]) -> zenoh.Session:
    return zenoh.open(zenoh.Config.from_json5(json.dumps(content)))


@contextmanager
def core(content: dict[str, object]) -> Iterator[tuple[str, zenoh.Session]]:
    """A core on loopback, on a free port: its endpoint and its session."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"quic/127.0.0.1:{probe.getsockname()[1]}"
    listening = content | {"mode": "router", "listen": {"endpoints": [endpoint]}}
    with closing(open_session(listening)) as session:
        yield endpoint, session


def delivers(receiver: zenoh.Session, sender: zenoh.Session) -> bool:
    """Whether what `sender` puts reaches `receiver`, within the deadline."""
    heard: queue.Queue[bytes] = queue.Queue()
    subscriber = receiver.declare_subscriber(
        KEY, lambda sample: heard.put(sample.payload.to_bytes())
    )
    ends_s = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < ends_s:
            # A put before the subscription has spread is lost.
            sender.put(KEY, b"word")
            try:
                return heard.get(timeout=0.1) == b"word"
            except queue.Empty:
                continue
        return False
    finally:
        subscriber.undeclare()


def linked_names(session: zenoh.Session) -> set[str | None]:
    """The certificates' names at the other ends."""
    return {link.auth_identifier for link in session.info.links()}


def test_members_meet_and_are_known_by_their_certificates(make: Make) -> None:
    one, other = make(), make()
    with (
        core(config(one)) as (endpoint, ours),
        closing(open_session(config(other, connect=(endpoint,)))) as theirs,
    ):
        assert delivers(ours, theirs)
        assert delivers(theirs, ours)
        assert linked_names(ours) == {other[0].node_id}
        assert linked_names(theirs) == {one[0].node_id}


def with_the_right_ca(stranger: Node, member: Node) -> Node:
    """It trusts our mesh, which it may know from a stolen file; its own certificate stays."""
    shutil.copy(member[1] / "ca.pem", stranger[1] / "ca.pem")
    return stranger


@pytest.mark.parametrize("trusting", [False, True], ids=["own CA", "our CA"])
def test_a_node_of_another_mesh_is_refused(make: Make, trusting: bool) -> None:
    member, stranger = make(), make(OTHER)
    if trusting:
        with_the_right_ca(stranger, member)
    with core(config(member)) as (endpoint, ours):
        refuse(config(stranger, connect=(endpoint,)), ours)
        still_serves(endpoint, ours, make())


def without_certificate(content: dict[str, object]) -> dict[str, object]:
    tls = content["transport"]["link"]["tls"]  # type: ignore[index]
    for name in ("connect_certificate", "connect_private_key"):
        del tls[name]
    tls["enable_mtls"] = False
    return content


def test_a_stranger_without_a_certificate_is_refused(make: Make) -> None:
    with core(config(make())) as (endpoint, ours):
        refuse(without_certificate(config(make(), connect=(endpoint,))), ours)
        still_serves(endpoint, ours, make())


def test_it_is_the_certificate_that_the_stranger_lacked(make: Make) -> None:
    """A core that asks for none takes the same session: the test above fails for nothing else."""
    careless = config(make())
    careless["transport"]["link"]["tls"]["enable_mtls"] = False  # type: ignore[index]
    with (
        core(careless) as (endpoint, ours),
        closing(open_session(without_certificate(config(make(), connect=(endpoint,))))) as stranger,
    ):
        assert delivers(ours, stranger)


def test_a_certificate_that_ran_out_is_refused(make: Make) -> None:
    with core(config(make())) as (endpoint, ours):
        refuse(config(make(made=timedelta(days=-400)), connect=(endpoint,)), ours)
        still_serves(endpoint, ours, make())


def test_nobody_joins_a_core_of_another_mesh(make: Make) -> None:
    with core(config(make(OTHER))) as (endpoint, theirs):
        refuse(config(make(), connect=(endpoint,)), theirs)


def refuse(content: dict[str, object], ours: zenoh.Session) -> None:
    """No session comes to be, and the core has no link to it."""
    with pytest.raises(zenoh.ZError):
        open_session(content).close()
    assert linked_names(ours) == set()


def still_serves(endpoint: str, ours: zenoh.Session, member: Node) -> None:
    with closing(open_session(config(member, connect=(endpoint,)))) as theirs:
        assert delivers(ours, theirs)
