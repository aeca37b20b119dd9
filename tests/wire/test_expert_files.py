"""Rankings and logits from one node's peer door to another: whole, right, or refused."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from meshd.experts.peer_files import (
    RANKING_BYTES_MAX,
    FetchError,
    StoppedError,
    fetch_logits,
    fetch_ranking,
)
from meshd.experts.wish import Holder
from meshd.gateway.model_table import SharedModel, write_models
from tests.wire.mesh_harness import Member, Node, caller, member, name_of, node

MODEL = "0123456789abcdef"
TEXT = "ab" * 32
MOST = 64 << 20


@asynccontextmanager
async def sharing(
    folder: Path, name: str, ranking: Path | None = None, logits: Path | None = None
) -> AsyncIterator[Node]:
    async with node(folder, name) as one:
        files = {TEXT: str(logits)} if logits else {}
        shared = SharedModel(("/nowhere.gguf",), "", str(ranking or ""), files)
        path = one.running.routes.with_name("models.json")
        await asyncio.to_thread(write_models, path, {MODEL: shared})
        async with asyncio.timeout(10):
            while not await answers(folder, one):
                await asyncio.sleep(0.01)
        yield one


async def answers(folder: Path, one: Node) -> bool:
    try:
        async with (
            caller(member(folder, "asks")) as http,
            http.get(f"https://{one.address}/mesh/health", server_hostname=name_of(one)) as answer,
        ):
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def holder(one: Node) -> Holder:
    return Holder(one.id, one.address)


def file_of(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Fetch:
    """Logits as a node fetches them. :ivar seen: how much was there at each step."""

    def __init__(self, me: Member, folder: Path, right: Callable[[bytes], bool]) -> None:
        self.seen: list[int] = []
        self._me = me
        self._folder = folder
        self._right = right
        self.stop_at = MOST
        self.most = MOST

    def accept(self, path: Path) -> None:
        if not self._right(path.read_bytes()):
            raise ValueError("these are no logits")

    def step(self, have: int, _: int) -> None:
        self.seen.append(have)

    def stopped(self) -> bool:
        return bool(self.seen) and self.seen[-1] >= self.stop_at

    async def __call__(self, *holders: Node) -> bytes:
        path = await asyncio.to_thread(
            fetch_logits,
            self._me.tls,
            tuple(map(holder, holders)),
            MODEL,
            TEXT,
            self._folder,
            self.most,
            self.step,
            self.accept,
            self.stopped,
        )
        return path.read_bytes()


async def ranking_from(me: Member, *holders: Node) -> bytes:
    def accept(text: bytes) -> bytes:
        if text != b"right":
            raise ValueError("this is no ranking")
        return text

    return await asyncio.to_thread(
        fetch_ranking, me.tls, tuple(map(holder, holders)), MODEL, accept
    )


async def test_a_ranking_from_the_first_that_has_a_right_one(tmp_path: Path) -> None:
    me = member(tmp_path, "me")
    right = file_of(tmp_path / "right.json", b"right")
    wrong = file_of(tmp_path / "wrong.json", b"garbage")
    large = file_of(tmp_path / "large.json", b"x" * (RANKING_BYTES_MAX + 1))
    async with (
        sharing(tmp_path, "none") as none,
        sharing(tmp_path, "wrong", wrong) as liar,
        sharing(tmp_path, "large", large) as drowner,
        sharing(tmp_path, "right", right) as good,
    ):
        assert await ranking_from(me, none, liar, drowner, good) == b"right"
        for bad, why in (
            (none, "answers 404"),
            (liar, "no ranking"),
            (drowner, "more than 1048576 bytes"),
        ):
            with pytest.raises(FetchError, match=why) as refused:
                await ranking_from(me, bad)
            assert refused.value.lacking is (bad is none)
    with pytest.raises(FetchError, match="no node gives"):
        await ranking_from(me, good)
    with pytest.raises(FetchError, match="no other node is known"):
        await ranking_from(me)


async def test_logits_come_whole_and_go_on_where_they_broke_off(tmp_path: Path) -> None:
    me, data = member(tmp_path, "me"), os.urandom(9 << 20)
    logits = file_of(tmp_path / "logits", data)
    async with sharing(tmp_path, "b", logits=logits) as b:
        fetch = Fetch(me, tmp_path / "got", lambda found: found == data)
        fetch.stop_at = 3 << 20
        with pytest.raises(StoppedError):
            await fetch(b)
        have = fetch.seen[-1]
        again = Fetch(me, tmp_path / "got", lambda found: found == data)
        assert await again(b) == data
    assert again.seen[0] == have >= 3 << 20


async def test_what_was_computed_anew_meanwhile_is_not_joined_to_what_is_here(
    tmp_path: Path,
) -> None:
    me, old, new = member(tmp_path, "me"), os.urandom(6 << 20), os.urandom(6 << 20)
    logits = file_of(tmp_path / "logits", old)
    async with sharing(tmp_path, "b", logits=logits) as b:
        fetch = Fetch(me, tmp_path / "got", lambda found: found == new)
        fetch.stop_at = 2 << 20
        with pytest.raises(StoppedError):
            await fetch(b)
        logits.unlink()
        file_of(logits, new)
        again = Fetch(me, tmp_path / "got", lambda found: found == new)
        assert await again(b) == new
    assert again.seen[0] == 0


async def test_logits_that_are_not_believed_leave_nothing(tmp_path: Path) -> None:
    me, data = member(tmp_path, "me"), os.urandom(1 << 20)
    bad = file_of(tmp_path / "bad.logits", os.urandom(1 << 20))
    good = file_of(tmp_path / "good.logits", data)
    async with (
        sharing(tmp_path, "bad", logits=bad) as liar,
        sharing(tmp_path, "good", logits=good) as right,
        sharing(tmp_path, "none") as none,
    ):
        fetch = Fetch(me, tmp_path / "got", lambda found: found == data)
        with pytest.raises(FetchError, match="no logits") as refused:
            await fetch(liar)
        assert not refused.value.lacking
        assert list((tmp_path / "got").iterdir()) == []
        with pytest.raises(FetchError, match="answers 404") as lacking:
            await fetch(none)
        assert lacking.value.lacking
        fetch.most = (1 << 20) - 1
        with pytest.raises(FetchError, match="more than 1048575"):
            await fetch(right)
        fetch.most = MOST
        assert await fetch(none, liar, right) == data


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{MODEL}/experts/ranking", 200),
        (f"{MODEL}/experts/logits/{TEXT}", 206),
        (f"{MODEL}/experts/logits/{'cd' * 32}", 404),
        (f"{MODEL}/experts/logits/..%2f..%2fetc%2fpasswd", 404),
        (f"{MODEL}/experts/logits/", 404),
        (f"{MODEL}/experts/..%2franking", 404),
        (f"{'f' * 16}/experts/ranking", 404),
        (f"{'f' * 16}/experts/logits/{TEXT}", 404),
    ],
)
async def test_only_what_is_in_the_table_is_served(tmp_path: Path, path: str, status: int) -> None:
    ranking = file_of(tmp_path / "ranking.json", b"right")
    logits = file_of(tmp_path / "logits", b"0123456789")
    async with (
        sharing(tmp_path, "b", ranking, logits) as b,
        caller(member(tmp_path, "me")) as http,
        http.get(
            f"https://{b.address}/mesh/v1/models/{path}",
            headers={"Range": "bytes=2-5"},
            server_hostname=name_of(b),
        ) as answer,
    ):
        body = await answer.read()
    assert answer.status == status
    assert body == {200: b"right", 206: b"2345"}.get(status, body)
    assert (b"error" in body) is (status == 404)


async def test_a_stranger_gets_nothing(tmp_path: Path) -> None:
    stranger = member(tmp_path, "me", b"another-secret-of-the-right-length-2345")
    ranking = file_of(tmp_path / "ranking.json", b"right")
    async with sharing(tmp_path, "b", ranking) as b:
        with pytest.raises(FetchError, match="another mesh"):
            await ranking_from(stranger, b)
