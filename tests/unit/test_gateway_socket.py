from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UserError
from meshd.units.gateway_socket import (
    PEERS,
    SERVICE,
    SHIPPED,
    SHIPPED_PEERS,
    UNIT,
    GatewaySocket,
    refusal,
    render_socket,
)
from meshd.units.hand_gateway import move_gateway
from meshd.units.port import JobFailed
from meshd.units.render import dropin_path


class Sockets:
    """systemd, as far as the gateway's sockets go: they listen on what their texts say."""

    def __init__(self, units: Path, *, taken: str = "", untouchable: str = "") -> None:
        self.paths = {unit: dropin_path(unit, units) for unit in (UNIT, PEERS)}
        self.path = self.paths[UNIT]
        self.taken = taken
        self.untouchable = untouchable
        self.texts = dict.fromkeys(self.paths, "")
        self.active = {UNIT, SERVICE}
        self.calls: list[str] = []

    @property
    def loaded(self) -> str:
        return self.texts[UNIT]

    async def reload(self) -> None:
        self.calls.append("reload")
        for unit, path in self.paths.items():
            self.texts[unit] = path.read_text() if path.exists() else ""

    async def stop(self, unit: str) -> None:
        self.calls.append(f"stop {unit}")
        if unit == self.untouchable:
            raise JobFailed(unit, "failed")
        self.active.discard(unit)

    async def start(self, unit: str) -> None:
        self.calls.append(f"start {unit}")
        if unit in self.texts and SERVICE in self.active:
            raise JobFailed(unit, "failed")
        if unit in self.texts and self.taken and self.taken in self.texts[unit]:
            raise JobFailed(unit, "failed")
        if unit == PEERS and not self.texts[PEERS]:
            return  # its condition is not met
        self.active.add(unit)


async def move(listen: tuple[str, ...], systemd: Sockets, units: Path) -> tuple[str, ...]:
    allowed = frozenset(listen)
    return await move_gateway(listen, allowed, units, systemd)  # type: ignore[arg-type]


async def test_a_new_address_moves_the_socket_and_the_shipped_one_moves_it_back(
    tmp_path: Path,
) -> None:
    systemd = Sockets(tmp_path)
    assert await move(("127.0.0.1:9444", "[::1]:9444"), systemd, tmp_path) == ()
    assert "ListenStream=\nListenStream=127.0.0.1:9444\nListenStream=[::1]:9444" in systemd.loaded
    assert systemd.active == {UNIT, SERVICE}
    systemd.calls.clear()
    assert await move(("127.0.0.1:9444", "[::1]:9444"), systemd, tmp_path) == ()
    assert systemd.calls == [], "what is so already is left alone"
    assert await move(SHIPPED, systemd, tmp_path) == ()
    assert not systemd.path.exists()
    assert systemd.active == {UNIT, SERVICE}


async def test_an_address_that_is_taken_leaves_the_gateway_where_it_was(tmp_path: Path) -> None:
    systemd = Sockets(tmp_path, taken=":9555")
    await move(("127.0.0.1:9444",), systemd, tmp_path)
    (error,) = await move(("127.0.0.1:9555",), systemd, tmp_path)
    assert "127.0.0.1:9555" in error
    assert "stays where it was" in error
    assert "127.0.0.1:9444" in systemd.loaded
    assert systemd.active == {UNIT, SERVICE}


async def test_an_address_that_roots_configuration_lacks_is_refused(tmp_path: Path) -> None:
    systemd = Sockets(tmp_path)
    wanted = ("127.0.0.1:9337", "0.0.0.0:9337")
    allowed = frozenset({"127.0.0.1:9337"})
    (error,) = await move_gateway(wanted, allowed, tmp_path, systemd)  # type: ignore[arg-type]
    assert "0.0.0.0:9337" in error
    assert systemd.calls == []


async def move_peers(
    peers: tuple[str, ...], systemd: Sockets, units: Path, allowed: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    rooted = frozenset(peers if allowed is None else allowed)
    return await move_gateway(
        (),
        frozenset(),
        units,
        systemd,  # type: ignore[arg-type]
        peers=peers,
        allowed_peers=rooted,
    )


async def test_the_peer_door_opens_with_a_mesh_and_closes_without(tmp_path: Path) -> None:
    systemd = Sockets(tmp_path)
    assert await move_peers((), systemd, tmp_path) == ()
    assert systemd.calls == [], "no mesh, and none before"
    assert await move_peers(SHIPPED_PEERS, systemd, tmp_path) == ()
    assert systemd.active == {UNIT, SERVICE, PEERS}
    assert "ListenStream" not in systemd.texts[PEERS]
    systemd.calls.clear()
    assert await move_peers(SHIPPED_PEERS, systemd, tmp_path) == ()
    assert systemd.calls == [], "what is so already is left alone"
    assert await move_peers(("[::]:9555",), systemd, tmp_path) == ()
    assert "ListenStream=\nListenStream=[::]:9555" in systemd.texts[PEERS]
    assert systemd.active == {UNIT, SERVICE, PEERS}
    assert await move_peers((), systemd, tmp_path) == ()
    assert systemd.active == {UNIT, SERVICE}
    assert not systemd.paths[PEERS].exists()


async def test_a_peer_door_that_cannot_open_leaves_the_gateway_open(tmp_path: Path) -> None:
    systemd = Sockets(tmp_path, taken=":9555")
    (error,) = await move_peers(("[::]:9555",), systemd, tmp_path)
    assert "[::]:9555" in error
    assert systemd.active == {UNIT, SERVICE}
    assert not systemd.paths[PEERS].exists()


async def test_a_peer_door_that_cannot_be_touched_leaves_the_gateway_open(tmp_path: Path) -> None:
    systemd = Sockets(tmp_path, untouchable=PEERS)
    (error,) = await move_peers(("[::]:9555",), systemd, tmp_path)
    assert "peer door" in error
    assert systemd.active == {UNIT, SERVICE}


async def test_a_peer_door_that_roots_configuration_lacks_is_refused(tmp_path: Path) -> None:
    systemd = Sockets(tmp_path)
    (error,) = await move_peers(("[::]:9555",), systemd, tmp_path, allowed=("[::]:9338",))
    assert error.startswith("peer door:")
    assert systemd.calls == []


async def test_saying_nothing_changes_nothing(tmp_path: Path) -> None:
    systemd = Sockets(tmp_path)
    assert await move((), systemd, tmp_path) == ()
    assert systemd.calls == []


@pytest.mark.parametrize(
    "listen",
    [
        ("127.0.0.1:80",),
        ("/run/docker.sock",),
        ("0.0.0.0:9337\nExecStartPre=/bin/sh",),
        ("[::1:9337",),
        ("127.0.0.1:9337",) * 17,
    ],
)
async def test_what_the_hand_does_not_do(listen: tuple[str, ...], tmp_path: Path) -> None:
    systemd = Sockets(tmp_path)
    assert len(await move(listen, systemd, tmp_path)) == 1
    assert systemd.calls == []
    assert not systemd.path.exists()


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4).map(tuple))
def test_whatever_passes_is_only_addresses(listen: tuple[str, ...]) -> None:
    if not refusal(listen):
        for line in render_socket(listen).splitlines()[2:]:
            assert line.startswith("ListenStream=")


class Listens:
    def __init__(self, *addresses: str, peers: tuple[str, ...] = ()) -> None:
        self.addresses = {UNIT: addresses, PEERS: peers}

    async def listens(self, socket: str) -> tuple[str, ...]:
        return self.addresses[socket]


async def test_a_socket_elsewhere_is_said() -> None:
    await GatewaySocket(Listens("127.0.0.1:9337")).listen(("127.0.0.1:9337",))
    await GatewaySocket(Listens("[::1]:9337", "127.0.0.1:9337")).listen(("localhost:9337",))
    with pytest.raises(UserError, match="9444"):
        await GatewaySocket(Listens("127.0.0.1:9337")).listen(("127.0.0.1:9444",))
    both = GatewaySocket(Listens("127.0.0.1:9337", peers=("[::]:9338",)))
    await both.listen(("127.0.0.1:9337",), ("[::]:9338",))
    with pytest.raises(UserError, match=r"mesh\.listen"):
        await both.listen(("127.0.0.1:9337",), ("[::]:9339",))
