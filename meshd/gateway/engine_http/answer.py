"""An answer whose head is here and whose body comes in pieces."""

from __future__ import annotations

import errno
from typing import Protocol

from multidict import CIMultiDictProxy

# The machine is gone, not only the connection: another connection would only take as long again.
_SILENT = frozenset(
    {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
)


class AnswerBroken(Exception):  # noqa: N818 -- an outcome that the relay expects
    """The connection ended, or turned out not to speak HTTP, before the answer's end.

    :ivar silent: the network says that the other machine does not answer.
    :ivar begun: something of the answer had come.
    """

    def __init__(self, why: str, *, silent: bool = False, begun: bool = False) -> None:
        super().__init__(why)
        self.silent = silent
        self.begun = begun


def is_silent(error: BaseException | None) -> bool:
    """Whether this is how the network says that the other machine does not answer."""
    return isinstance(error, OSError) and error.errno in _SILENT


class Source(Protocol):
    """Where the body comes from."""

    async def piece(self) -> bytes: ...

    def rest(self) -> bytes | None: ...

    def leave(self) -> None: ...


class Answer:
    """:ivar headers: of the answer; names in any case, values as they came."""

    __slots__ = ("_source", "headers", "status")

    def __init__(self, status: int, headers: CIMultiDictProxy[str], source: Source) -> None:
        self.status = status
        self.headers = headers
        self._source: Source | None = source

    @property
    def content_type(self) -> str:
        """The media type in small letters, without its parameters; "" when there is none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    async def piece(self) -> bytes:
        """What has come of the body since the last piece, waited for; b"" at its proper end.

        A wait for it may be cancelled and begun again; nothing gets lost.

        :raises AnswerBroken: it ended before its end.
        """
        if self._source is None:
            raise AnswerBroken("closed", begun=True)
        return await self._source.piece()

    def rest(self) -> bytes | None:
        """What has not been taken yet of a body that is complete, None while more is to come."""
        return None if self._source is None else self._source.rest()

    def close(self) -> None:
        """Give the connection back if all was read, else cut it; harmless when called again.

        The engine takes the cut for the client's leaving, and frees the slot.
        """
        source, self._source = self._source, None
        if source is not None:
            source.leave()
