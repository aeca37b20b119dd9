"""Where other nodes were when this one last saw them: how it finds the mesh when no configured
peer is up. Small, bounded, and of no weight: a damaged file is an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from meshd.files import write_atomically
from meshd.mesh.addresses import host_port
from meshd.mesh.candidates import Candidate
from meshd.mesh.identity import is_id

_MOST = 64
_MOST_BYTES = 64 * 1024


class _Peer(msgspec.Struct, frozen=True):
    id: str
    addresses: list[str]
    core: bool = False


def read_peers(path: Path) -> tuple[Candidate, ...]:
    try:
        with path.open("rb") as file:
            peers = msgspec.json.decode(file.read(_MOST_BYTES), type=list[_Peer])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return ()
    found = []
    for peer in peers[:_MOST]:
        try:
            addresses = tuple(host_port(text, 0) for text in peer.addresses[:8])
        except ValueError:
            continue
        if is_id(peer.id) and all(address.port for address in addresses):
            found.append(Candidate(peer.id, addresses, peer.core))
    return tuple(found)


def write_peers(path: Path, peers: Iterable[Candidate]) -> None:
    """:raises OSError: the folder cannot be written."""
    kept = sorted(peers, key=lambda one: not one.core)[:_MOST]
    text = msgspec.json.encode(
        [_Peer(one.node, [str(address) for address in one.addresses], one.core) for one in kept]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text + b"\n", mode=0o600)


def merged(now: Iterable[Candidate], before: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """What to remember: those of now, and as many of the earlier ones as there is room for."""
    kept = {one.node: one for one in now if one.addresses}
    for one in before:
        if len(kept) < _MOST:
            kept.setdefault(one.node, one)
    return tuple(kept.values())
