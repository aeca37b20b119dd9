"""Ranges of models' files for other nodes of the mesh, which seed their tensor caches with them,
and what was found out of their experts, which others then need not find out again.

Below ``/mesh/v1/models/FINGERPRINT``, all of them GET:

=======================  =================================================
/INDEX                   a part (from 0): one Range, required
/manifest                what is known of the tensors' hashes
/experts/ranking         how often each expert was chosen
/experts/logits/SHA256   of the whole model on that text: one Range, required
=======================  =================================================

``X-Mesh-Parts`` says in how many files the model lies. Only what the brain's table names is
served; a weight must never keep a token waiting, so pieces are small and transfers are few.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from aiohttp import web

from meshd.gateway.intake import Refuse
from meshd.gateway.model_table import ModelTable, SharedModel, read_models
from meshd.gateway.openai_error import ApiError

TRANSFERS_MAX = 4
RANGE_BYTES_MAX = 8 << 30
WHOLE_BYTES_MAX = 16 << 20
# Encrypting one takes less than a millisecond of the loop that tokens pass through.
PIECE_BYTES = 256 * 1024
# In which the other end takes one piece.
PIECE_S = 20.0
_RETRY_AFTER_S = 5
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})")

_log = structlog.get_logger("meshd.gateway")


class ModelFiles:
    """:param table: file that the brain writes; read again whenever it changed."""

    def __init__(self, table: Path | None) -> None:
        self._path = table
        self._seen: tuple[int, int] | None = None
        self._table: ModelTable = {}
        self._under_way = 0

    async def part(self, request: web.Request) -> web.StreamResponse:
        model = await self._model(request)
        index = int(request.match_info["index"])
        if index >= len(model.files):
            raise _refuse(404, f"the model has {len(model.files)} files")
        more = {"X-Mesh-Parts": str(len(model.files))}
        return await self._range(request, model.files[index], more)

    async def manifest(self, request: web.Request) -> web.Response:
        model = await self._model(request)
        return await self._whole(model.manifest, "none of its tensors is cached here")

    async def ranking(self, request: web.Request) -> web.Response:
        model = await self._model(request)
        return await self._whole(model.ranking, "its experts were not counted here")

    async def logits(self, request: web.Request) -> web.StreamResponse:
        model = await self._model(request)
        file = model.logits.get(request.match_info["text"])
        if file is None:
            raise _refuse(404, "its logits on this text are not here")
        return await self._range(request, file, {})

    async def _range(
        self, request: web.Request, file: str, more: dict[str, str]
    ) -> web.StreamResponse:
        said = _RANGE.fullmatch(request.headers.get("Range", ""))
        if said is None:
            raise _refuse(400, "one Range is required: bytes=FIRST-LAST")
        with self._one_more():
            try:
                descriptor, about = await asyncio.to_thread(_open, file)
            except OSError as error:
                _log.warning("a model's file cannot be read", error=str(error))
                raise _refuse(404, "the file cannot be read") from None
            try:
                size_bytes = about.st_size
                first, last = int(said[1]), min(int(said[2]), size_bytes - 1)
                if first > last or last - first >= RANGE_BYTES_MAX:
                    raise _refuse(416, f"the file has {size_bytes} bytes")
                headers = {
                    "Content-Range": f"bytes {first}-{last}/{size_bytes}",
                    # Who goes on later sees whether it is the same file.
                    "ETag": f'"{size_bytes:x}-{about.st_mtime_ns:x}"',
                    **more,
                }
                return await self._send(request, descriptor, first, last, headers)
            finally:
                os.close(descriptor)

    async def _whole(self, file: str, lacking: str) -> web.Response:
        """:param lacking: what a caller is told where the file is not there."""
        if not file:
            raise _refuse(404, lacking)
        with self._one_more():
            try:
                text = await asyncio.to_thread(_read, file)
            except OSError:
                raise _refuse(404, lacking) from None
        return web.Response(body=text, content_type="application/json")

    async def _send(
        self,
        request: web.Request,
        descriptor: int,
        first: int,
        last: int,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        answer = web.StreamResponse(status=206, headers=headers)
        answer.content_type = "application/octet-stream"
        answer.content_length = last - first + 1
        await answer.prepare(request)
        while first <= last:
            count = min(PIECE_BYTES, last - first + 1)
            piece = await asyncio.to_thread(os.pread, descriptor, count, first)
            if not piece:
                break  # it was cut short meanwhile
            first += len(piece)
            try:
                async with asyncio.timeout(PIECE_S):
                    await answer.write(piece)
            except (TimeoutError, ConnectionError):
                break  # it takes nothing, or is gone
        if first <= last:
            if request.transport is not None:
                request.transport.abort()
            return answer
        await answer.write_eof()
        return answer

    async def _model(self, request: web.Request) -> SharedModel:
        await asyncio.to_thread(self._refresh)
        model = self._table.get(request.match_info["fingerprint"])
        if model is None:
            raise _refuse(404, "no model with this fingerprint is shared here")
        return model

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        if self._under_way >= TRANSFERS_MAX:
            raise _refuse(503, "enough weights are being sent", _RETRY_AFTER_S)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            about = self._path.stat()
            seen: tuple[int, int] | None = (about.st_mtime_ns, about.st_ino)
        except OSError:
            seen = None
        if seen == self._seen:
            return
        try:
            self._table = read_models(self._path) if seen else {}
        except ValueError as error:
            _log.warning(
                "the table of models is not usable, the last good one stays", error=str(error)
            )
        self._seen = seen


def add_model_files(app: web.Application, files: ModelFiles) -> None:
    base = "/mesh/v1/models/{fingerprint:[0-9a-f]{16}}"
    app.router.add_get(base + r"/{index:\d{1,3}}", files.part, allow_head=False)
    app.router.add_get(base + "/manifest", files.manifest, allow_head=False)
    app.router.add_get(base + "/experts/ranking", files.ranking, allow_head=False)
    app.router.add_get(base + "/experts/logits/{text:[0-9a-f]{64}}", files.logits, allow_head=False)


def _refuse(status: int, message: str, retry_after_s: int | None = None) -> Refuse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return Refuse(ApiError(status, message, kind, retry_after_s=retry_after_s))


def _open(file: str) -> tuple[int, os.stat_result]:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    return descriptor, os.fstat(descriptor)


def _read(file: str) -> bytes:
    with Path(file).open("rb") as source:
        if os.fstat(source.fileno()).st_size > WHOLE_BYTES_MAX:
            raise OSError(f"{file} is too large")
        return source.read(WHOLE_BYTES_MAX)
