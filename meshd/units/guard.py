"""From a lease or a split to the guard at its end. Pure: the same in, the same out."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.guard.status import End
from meshd.paths import Paths
from meshd.planner.lent import Lent, Way
from meshd.units.spec import MESHD, EngineKind, EngineSpec


def member_guard_spec(lent: Lent, listen_host: str, build: EngineBuild, paths: Paths) -> EngineSpec:
    """The door in front of what a node lends: for the host of that split and term alone.

    :param listen_host: as in an address, e.g. ``[::]``: where other nodes reach this one.
    :raises UserError: the build does not say which RPC it speaks.
    """
    return EngineSpec(
        kind=EngineKind.GUARD,
        name=lent.name,
        model=lent.model,
        argv=(
            *(MESHD, "guard", lent.name, End.MEMBER),
            *("--listen", f"{listen_host}:{lent.door_port}"),
            *("--front", f"127.0.0.1:{lent.rpc_port}"),
            *("--admit", lent.host),
            *_split(lent.term, build),
            *_folders(lent.name, paths),
        ),
    )


def host_guard_spec(
    name: str,
    model: str,
    term: int,
    ways: tuple[Way, ...],
    ubatch_s: float,
    build: EngineBuild,
    paths: Paths,
) -> EngineSpec:
    """The local ends that a split's llama-server connects to.

    :param name: the instance of that llama-server.
    :param ubatch_s: how long one micro-batch of a prompt may take on the slowest member. It is
        part of the guard's text: for one term it has to be one number.
    :raises UserError: the build does not say which RPC it speaks.
    """
    return EngineSpec(
        kind=EngineKind.GUARD,
        name=name,
        model=model,
        argv=(
            *(MESHD, "guard", name, End.HOST),
            *(word for way in ways for word in _way(way)),
            *_split(term, build),
            *("--ubatch-s", f"{max(ubatch_s, 0.1):.1f}"),
            *_folders(name, paths),
        ),
    )


def _way(way: Way) -> Iterator[str]:
    yield "--local"
    yield f"127.0.0.1:{way.local_port}={way.node}@{way.address}"


def _split(term: int, build: EngineBuild) -> Iterator[str]:
    if build.rpc_protocol is None:
        raise UserError(
            "it is not known which version of RPC the engine speaks",
            hint="meshd engine show; use another engine (meshd engine install)",
        )
    yield from ("--term", str(term))
    yield from ("--protocol", ".".join(map(str, build.rpc_protocol)))


def _folders(name: str, paths: Paths) -> Iterator[str]:
    yield from ("--tls", str(paths.tls))
    yield from ("--status", str(paths.guard_socket(name)))
