"""Gives an engine's answer to the client, as it comes."""

from __future__ import annotations

from aiohttp import web

from meshd.gateway import headers, openai_error
from meshd.gateway.client_answer import ClientAnswer
from meshd.gateway.engine_call import EngineFailed, broken
from meshd.gateway.engine_http.answer import Answer, AnswerBroken
from meshd.gateway.event_stream import EventStream
from meshd.gateway.intake import Refuse
from meshd.gateway.job import Job
from meshd.gateway.openai_error import ApiError
from meshd.gateway.splice import BrokenSpliceError
from meshd.gateway.tokens import Timings, costs_of
from meshd.gateway.upstreams import Deadlines
from meshd.gateway.waits import Wait, Waits

MAX_ANSWER_BYTES = 256 * 1024 * 1024
# So another node's gateway says that its engine died of a request, or beside it.
_ENGINE_LOST = openai_error.engine_lost("").code


class StreamBroken(Exception):  # noqa: N818 -- an outcome that the relay expects
    """The engine is not to be had any more, and the client has a part of its answer.

    :ivar kind: for the metric: died_mid_stream, silent, unfinished, moved or diverged.
    :ivar lost: the engine is gone: it may be the request that killed it.
    :ivar said: what the engine said at last, "" for nothing that can be told.
    :ivar whole: the client stands at an event's end.
    """

    def __init__(
        self, kind: str, *, lost: bool = False, said: ApiError | None = None, whole: bool = True
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.lost = lost
        self.said = said
        self.whole = whole


class Delivery:
    """Whole answers and streams."""

    def __init__(self, deadlines: Deadlines, waits: Waits) -> None:
        self._deadlines = deadlines
        self._waits = waits

    async def whole(
        self, job: Job, answer: Answer, wait: Wait
    ) -> tuple[web.StreamResponse, Timings | None]:
        """An answer that is sent when it is complete, so that a broken one can be made anew.

        :raises EngineFailed: it broke.
        :raises Refuse: it is an error, or too large.
        """
        text = await self.body(answer, wait)
        if text is None:
            job.exchange.failure = "too_large"
            raise Refuse(openai_error.engine_lost(job.exchange.model, "answered too much"))
        if answer.status >= 400:
            raise Refuse(openai_error.from_upstream(answer.status, text))
        job.exchange.tokens, timings = costs_of(text)
        told = headers.to_client(answer.headers)
        told.update(job.signs)
        if answer.status == 200:
            return ClientAnswer(told, text), timings
        return web.Response(status=answer.status, body=text, headers=told), timings

    async def body(self, answer: Answer, wait: Wait) -> bytes | None:
        """All of it, None when it is too large.

        :raises EngineFailed: it broke.
        """
        if (all_of_it := answer.rest()) is not None:
            return all_of_it if len(all_of_it) <= MAX_ANSWER_BYTES else None
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            self._waits.extend(wait, self._deadlines.idle)
            while piece := await answer.piece():
                size_bytes += len(piece)
                if size_bytes > MAX_ANSWER_BYTES:
                    return None
                pieces.append(piece)
                self._waits.extend(wait, self._deadlines.idle)
        except AnswerBroken as error:
            raise broken(error) from None
        return b"".join(pieces)

    async def stream(self, job: Job, answer: Answer, wait: Wait) -> web.StreamResponse:
        """Events, each as soon as it is whole.

        :raises EngineFailed: it broke before the client had anything but comments.
        :raises StreamBroken: it broke after that.
        :raises Refuse: it said that it cannot, before the client had anything.
        """
        out, resumption = job.out, job.resumption
        if not out.prepared:
            out.headers.update(headers.to_client(answer.headers))
            out.headers.update(job.signs)
        elif out.begun:
            # What its headers said of this is no longer so.
            await out.comment(_signs(job))
        events = EventStream(job.protocol)
        try:
            while True:
                self._waits.extend(wait, self._deadlines.idle)
                piece = await answer.piece()
                if not piece:
                    break
                ready = events.feed(piece)
                if events.error is not None and self._concerns_us(job, events.error):
                    raise _broken_off("unfinished", job, events)
                if resumption is not None and ready:
                    ready = resumption.through(ready)
                if not ready:
                    continue
                job.counted.feed(ready)
                if resumption is not None:
                    # Before the wait: it is on its way even if the client's reading ends too late.
                    resumption.sent(ready)
                await out.events(ready)
                if out.begun and job.exchange.first_token_s is None:
                    job.exchange.first_token()
                    job.first_token()
        except AnswerBroken as error:
            if events.done:
                return await out.end()  # all of it had come
            kind = "silent" if error.silent else "died_mid_stream"
            if not out.begun:
                raise broken(error) from None
            raise StreamBroken(kind, lost=not error.silent, whole=events.whole) from None
        except BrokenSpliceError as error:
            raise StreamBroken(error.kind, whole=events.whole) from None
        finally:
            job.exchange.tokens = job.counted.tokens
        if events.complete or events.failed:
            return await out.end(b"" if events.failed else events.rest())
        raise _broken_off("unfinished", job, events)

    @staticmethod
    def _concerns_us(job: Job, error: ApiError) -> bool:
        """An error that the client need not see: nothing was sent, and another may do better; or
        another engine was asked to go on.
        """
        if job.resumption is not None and job.resumption.count:
            return True
        if job.remote and error.code == _ENGINE_LOST:
            return True
        # Engines' errors have no code; other gateways' do.
        return not job.out.begun and job.remote and error.status >= 500 and bool(error.code)


def _signs(job: Job) -> str:
    names = (headers.NODE, headers.ATTEMPTS, headers.RESUMED, headers.QUALITY)
    return ", ".join(f"{name.lower()}: {job.signs[name]}" for name in names)


def _broken_off(kind: str, job: Job, events: EventStream) -> Exception:
    said = events.error
    if said is None and (rest := events.rest()):
        said = openai_error.from_upstream(502, rest)
    if events.error is not None:  # an engine that says so is well
        lost = job.remote and events.error.code == _ENGINE_LOST
    else:
        lost = not job.remote
    if not job.out.begun:
        return EngineFailed(kind, lost=lost, answered=job.remote)
    return StreamBroken(kind, lost=lost, said=said, whole=events.whole)
