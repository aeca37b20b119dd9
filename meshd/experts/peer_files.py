"""What another node found out of a model's experts: its ranking, and the whole model's logits.

``GET /mesh/v1/models/FINGERPRINT/experts/...`` over the mesh's mutual TLS; see
`gateway.model_files` for the other end. Blocking, with a deadline on every step. What comes is
believed no more than a file that was found somewhere: who asks says how it is looked at.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from meshd.errors import UserError
from meshd.experts.wish import Holder
from meshd.mesh.peer_http import LackingError, PeerHttp, SourceError, refused

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

RANKING_BYTES_MAX = 1 << 20


class FetchError(UserError):
    """Nobody gave it; the last reason is said.

    :ivar lacking: all of them said that they have no such thing.
    """

    def __init__(self, message: str, *, lacking: bool = False) -> None:
        super().__init__(message)
        self.lacking = lacking


class StoppedError(Exception):
    """Nobody wants it any more."""


def fetch_ranking(
    tls: Path | None,
    holders: tuple[Holder, ...],
    fingerprint: str,
    accept: Callable[[bytes], _T],
    stopped: Callable[[], bool] = lambda: False,
) -> _T:
    """From the first holder that gives one that is accepted.

    :param accept: makes a ranking of what came. :raises ValueError: it cannot be believed.
    :raises FetchError: nobody gives one. :raises StoppedError: between two of them it is stopped.
    """

    def ask(peer: PeerHttp) -> _T:
        with peer.get(f"{_base(fingerprint)}/ranking") as answer:
            if answer.status != 200:
                raise refused(peer.node, answer.status, "the ranking")
            text = b"".join(peer.pieces(answer, RANKING_BYTES_MAX + 1))
        if len(text) > RANKING_BYTES_MAX:
            raise SourceError(f"{peer.node} sends more than {RANKING_BYTES_MAX} bytes of ranking")
        return accept(text)

    return _first(tls, holders, "ranking", ask, stopped)


def fetch_logits(
    tls: Path | None,
    holders: tuple[Holder, ...],
    fingerprint: str,
    text: str,
    folder: Path,
    most_bytes: int,
    step: Callable[[int, int], None],
    accept: Callable[[Path], None],
    stopped: Callable[[], bool] = lambda: False,
) -> Path:
    """A file in `folder` with what the first holder had that is accepted; who asked moves it.

    What was received before it broke off is not asked for again, as long as that holder has the
    same file: those of two holders differ in rounding, and are not joined.

    :param text: SHA-256 of it. :param most_bytes: that the file may have.
    :param step: called with the bytes that are here, of how many.
    :param accept: looks at the whole file. :raises ValueError: it cannot be believed.
    :raises FetchError: nobody gives it. :raises StoppedError: in the middle it is stopped.
    :raises OSError: it cannot be written.
    """
    path = f"{_base(fingerprint)}/logits/{text}"

    def ask(peer: PeerHttp) -> Path:
        with peer.range(path, 0, 1, "logits") as (answer, got, size_bytes):
            if size_bytes > most_bytes or got != 1:
                raise SourceError(
                    f"{peer.node} has {size_bytes} bytes of logits, more than {most_bytes}"
                )
            stamp = answer.headers.get("ETag", "")
            b"".join(peer.pieces(answer, 1))
        name = hashlib.sha256(f"{fingerprint} {text} {peer.node} {stamp}".encode()).hexdigest()
        target = folder / f"{name[:32]}.part"
        _receive(peer, path, target, size_bytes, step, stopped)
        try:
            accept(target)
        except ValueError:
            target.unlink(missing_ok=True)
            raise
        return target

    folder.mkdir(parents=True, exist_ok=True)
    return _first(tls, holders, "logits", ask, stopped)


def _receive(
    peer: PeerHttp,
    path: str,
    target: Path,
    size_bytes: int,
    step: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> None:
    with target.open("ab", buffering=0) as file:
        have = file.tell()
        if have > size_bytes:
            file.truncate(0)
            have = 0
        step(have, size_bytes)
        if have < size_bytes:
            with peer.range(path, have, size_bytes - have, "logits") as (answer, got, _):
                if got != size_bytes - have:
                    raise SourceError(f"{peer.node} gives another range than was asked for")
                for piece in peer.pieces(answer, got):
                    if stopped():
                        raise StoppedError
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(file.fileno(), view) :]
                    have += len(piece)
                    step(have, size_bytes)
            if have < size_bytes:
                raise SourceError(f"{peer.node} ended {size_bytes - have} bytes early")
        os.fsync(file.fileno())


def _first(
    tls: Path | None,
    holders: tuple[Holder, ...],
    what: str,
    ask: Callable[[PeerHttp], _T],
    stopped: Callable[[], bool],
) -> _T:
    if tls is None or not holders:
        raise FetchError(f"no other node is known to have the {what}")
    why, lacking = "", True
    for holder in holders:
        if stopped():
            raise StoppedError
        try:
            with _closing(PeerHttp(holder.node, holder.address, tls)) as peer:
                return ask(peer)
        except (SourceError, ValueError) as error:
            why = f"{holder.node}: {error}" if isinstance(error, ValueError) else str(error)
            lacking = lacking and isinstance(error, LackingError)
            _log.warning(f"a node did not give its {what}", node=holder.node, why=why)
    raise FetchError(f"no node gives the {what}: {why}", lacking=lacking)


@contextmanager
def _closing(peer: PeerHttp) -> Iterator[PeerHttp]:
    try:
        yield peer
    finally:
        peer.close()


def _base(fingerprint: str) -> str:
    return f"/mesh/v1/models/{fingerprint}/experts"
