"""The routing table for clients of the mesh, by events: an open connection is all that a node
keeps of one.

Format: WHATWG HTML, "Server-sent events". Each event is a whole table; its id is the table's hash,
which a client that comes back sends as ``Last-Event-ID``.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from aiohttp import web

from meshd.gateway.far_table import seen_from_outside
from meshd.gateway.intake import Refuse
from meshd.gateway.news import News
from meshd.gateway.openai_error import LOADING_RETRY_S, no_table, unavailable
from meshd.gateway.routes import RoutingTable, packed

MAX_FOLLOWERS = 4096
# One member that goes mad takes no more than its share of these.
MAX_FOLLOWERS_PER_MEMBER = 64

EVENT = b"event: table\n"
_COMMENT = b": still here\n\n"
_COMMENT_S = 30.0
# A follower that does not take an event within this time is cut.
_SLOW_S = 10.0
# Changes that follow one another more closely than this are one event.
_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Edition:
    """One table, encoded once for all followers. :ivar tag: hash of what it says."""

    tag: str
    json: bytes
    event: bytes


def edition(table: RoutingTable) -> Edition:
    """What others are told of it."""
    outside = seen_from_outside(table)
    # The generation only counts: the same words again are no news.
    tag = hashlib.sha256(packed(replace(outside, generation=0))).hexdigest()[:16]
    text = packed(outside)
    return Edition(tag, text, b"id: %s\n%sdata: %s\n\n" % (tag.encode(), EVENT, text))


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """In seconds, but for the numbers of followers."""

    followers: int = MAX_FOLLOWERS
    followers_per_member: int = MAX_FOLLOWERS_PER_MEMBER
    comment: float = _COMMENT_S
    slow: float = _SLOW_S
    pause: float = _PAUSE_S


class RoutesFeed:
    """:ivar followers: open streams now."""

    def __init__(
        self, limits: FeedLimits | None = None, member: Callable[[web.Request], str] = lambda _: ""
    ) -> None:
        """:param member: the id of who asks, from its certificate."""
        self.followers = 0
        self._limits = limits or FeedLimits()
        self._member = member
        self._by_member: Counter[str] = Counter()
        self._edition: Edition | None = None
        self._news = News()
        self._stopping = False

    def table_changed(self, table: RoutingTable) -> None:
        """Tell all followers, unless it says what they know."""
        new = edition(table)
        if self._edition is None or new.tag != self._edition.tag:
            self._edition = new
            self._news.tell()

    async def stop(self) -> None:
        """End all streams; their clients go elsewhere."""
        self._stopping = True
        self._news.tell()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """GET: a stream of events for who accepts one, else the table once, with its ETag.

        :raises Refuse: there is no table yet, or no room.
        """
        if self._edition is None:
            raise Refuse(no_table())
        if "text/event-stream" not in request.headers.get("Accept", ""):
            return self._once(request, self._edition)
        member = self._member(request)
        if (
            self._stopping
            or self.followers >= self._limits.followers
            or self._by_member[member] >= self._limits.followers_per_member
        ):
            raise Refuse(
                unavailable("This node has all the followers it takes.", "full", LOADING_RETRY_S)
            )
        self.followers += 1
        self._by_member[member] += 1
        try:
            return await self._stream(request)
        finally:
            self.followers -= 1
            self._by_member[member] -= 1
            if not self._by_member[member]:
                del self._by_member[member]

    def _once(self, request: web.Request, now: Edition) -> web.Response:
        tag = f'"{now.tag}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=now.json, content_type="application/json", headers={"ETag": tag})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        known = request.headers.get("Last-Event-ID", "")
        try:
            await response.prepare(request)
            while not self._stopping:
                seen, now = self._news.count, self._edition
                assert now is not None
                fresh = now.tag != known
                async with asyncio.timeout(self._limits.slow):
                    await response.write(now.event if fresh else _COMMENT)
                known = now.tag
                if fresh:
                    await asyncio.sleep(self._limits.pause)
                try:
                    async with asyncio.timeout(self._limits.comment):
                        await self._news.after(seen)
                except TimeoutError:
                    continue
        except ConnectionError:
            return response  # it left
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            return response
        if request.transport is not None:
            await response.write_eof()
        return response
