"""Files from the peer door of another node, over the mesh's mutual TLS.

Blocking, with a deadline on every step: a peer that is silent, drips or sends more than was asked
for is left.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from meshd.mesh.addresses import host_port
from meshd.mesh.tls import client_context, handshake_problem, peer_node_id

CONNECT_S = 5.0
# A peer that sends nothing for so long is left, and so is one whose answer has not begun by then,
# or that is slower than this on the whole: a drip would keep who waits for it for hours.
SILENCE_S = 10.0
BEGIN_S = 20.0
SLOWEST_BYTES_S = 256 * 1024
GRACE_S = 20.0
_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class SourceError(Exception):
    """The peer does not give what was asked; another one may."""


class LackingError(SourceError):
    """It says that it has no such thing."""


def refused(node: str, status: int, what: str) -> SourceError:
    """:param what: was asked for, for people."""
    kind = LackingError if status == 404 else SourceError
    return kind(f"{node} answers {status} for {what}")


class PeerHttp:
    """One peer. Keeps one connection; for one thread at a time."""

    def __init__(
        self,
        node: str,
        address: str,
        tls_folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param address: ``host:port`` of its peer door."""
        self.node = node
        self._address = address
        self._tls = tls_folder
        self._clock = clock
        self._connection: _Connection | None = None

    @contextmanager
    def get(self, path: str, wanted: str = "") -> Iterator[http.client.HTTPResponse]:
        """:param wanted: a Range. :raises SourceError: no answer comes, or it breaks off."""
        try:
            connection = self._connected()
            answer = connection.answer_to(path, {"Range": wanted} if wanted else {})
            yield answer
            if not answer.isclosed():
                self.close()  # the rest of this answer would be taken for the next one
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise SourceError(f"{self.node} at {self._address}: {_words(error)}") from error
        except BaseException:
            self.close()
            raise

    @contextmanager
    def range(
        self, path: str, offset: int, size_bytes: int, what: str
    ) -> Iterator[tuple[http.client.HTTPResponse, int, int]]:
        """Yield the answer, the bytes that it has, and the file's size.

        :param what: is asked for, for people.
        :raises SourceError: it has not got that range.
        """
        with self.get(path, f"bytes={offset}-{offset + size_bytes - 1}") as answer:
            said = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if answer.status != 206 or said is None or int(said[1]) != offset:
                raise refused(self.node, answer.status, what)
            yield answer, int(said[2]) - offset + 1, int(said[3])

    def pieces(self, answer: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
        """Until the end, or `most` bytes. :raises SourceError: it is too slow."""
        began_s, left = self._clock(), most
        # Not `read`: it comes back only when all is there, however long that takes.
        while left and (piece := answer.read1(min(left, _PIECE_BYTES))):
            left -= len(piece)
            spent_s = self._clock() - began_s
            if spent_s > GRACE_S and (most - left) / spent_s < SLOWEST_BYTES_S:
                raise SourceError(f"{self.node} is slower than {SLOWEST_BYTES_S} bytes/s")
            yield piece
        answer.read(0)  # marks an answer as whole, which `read1` does not: the connection is kept

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> _Connection:
        if self._connection is None:
            self._connection = _Connection(self.node, self._address, self._tls)
        return self._connection


class _Connection(http.client.HTTPConnection):
    """TLS to the node that it should be, whatever its address is called."""

    def __init__(self, node: str, address: str, tls_folder: Path) -> None:
        try:
            place = host_port(address, 0)
        except ValueError as error:
            raise SourceError(f"{node}: {error}") from error
        super().__init__(place.host, place.port, timeout=SILENCE_S)
        self._node = node
        self._context = client_context(tls_folder)
        self._context.check_hostname = False  # its id is what is compared, below

    def answer_to(self, path: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The beginning of it. :raises OSError, http.client.HTTPException: it does not come."""
        if self.sock is None:
            self.connect()
        secured = self.sock
        # Each read has its deadline, and headers take as many as the peer likes.
        late = threading.Timer(BEGIN_S, _shut, (secured,))
        late.daemon = True
        late.start()
        try:
            self.request("GET", path, headers=headers)
            return self.getresponse()
        finally:
            late.cancel()

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), CONNECT_S)
        try:
            secured = self._context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        secured.settimeout(SILENCE_S)
        self.sock = secured
        if peer_node_id(secured) != self._node:
            raise ConnectionError("another node answers at this address")


def _shut(connection: socket.socket) -> None:
    """Who waits for it reads an end. Not `SSLSocket.shutdown`: that is for one thread."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return handshake_problem(error) or str(error)
    return str(error) or type(error).__name__
