"""The whole model's logits on a text: those that are here, another node's, or our own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from meshd.experts.hold import Hold
from meshd.experts.logits_file import DifferError, LogitsError
from meshd.experts.logits_origin import LogitsOrigin
from meshd.experts.logits_store import LogitsStore
from meshd.experts.peer_files import FetchError, fetch_logits
from meshd.experts.ranking_work import Show, same_model
from meshd.experts.stoppable_thread import StoppableThread
from meshd.experts.wish import Holder, ShardWish, Text, WorkStage, WorkState
from meshd.experts.work_tools import About, RefusedError, Tools, WaitingError
from meshd.files import sync_folder

_log = structlog.get_logger(__name__)

# Whoever has them may just be starting again; computing them takes long.
FETCHES_BEFORE_COMPUTING = 3
TEXTS_MAX = 16
# Who gave wrong ones of what, and is not asked for the same again in this life.
WRONG_MAX = 256


@dataclass(frozen=True, slots=True)
class Sample:
    """A text to measure on. :ivar sha256: of its file."""

    text: Text
    sha256: str

    @property
    def path(self) -> Path:
        return Path(self.text.measures)


@dataclass(frozen=True, slots=True)
class Base:
    """The whole model's logits on a text. :ivar path: of their file."""

    path: Path
    origin: LogitsOrigin


def samples_of(texts: Iterable[Text]) -> tuple[Sample, ...]:
    """Blocks. :raises RefusedError: there is none, or one is not there."""
    found = []
    for text in tuple(texts)[:TEXTS_MAX]:
        try:
            with Path(text.measures).open("rb") as file:
                found.append(Sample(text, hashlib.file_digest(file, "sha256").hexdigest()))
        except OSError as error:
            raise RefusedError(f"{text.measures}: {error.strerror or error}") from error
    if not found:
        raise RefusedError("there is no text to measure a shard on")
    return tuple(found)


class WholeLogits:
    """For wishes of shards, one at a time."""

    def __init__(
        self, tools: Tools, store: LogitsStore, thread: StoppableThread, hold: Hold
    ) -> None:
        self._tools = tools
        self._store = store
        self._thread = thread
        self._hold = hold
        self._wrong: dict[tuple[str, str, str], None] = {}

    async def on(
        self, wish: ShardWish, about: About, sample: Sample, show: Show, failures: int
    ) -> Base:
        """:param failures: how often it was tried in vain.

        :raises WaitingError: another node is to compute them.
        """
        run = self._thread.run
        path = self._store.path(wish.fingerprint, sample.sha256)
        if await run(lambda stopped: self._usable(path, about, stopped)):
            await run(lambda _: self._store.used(path))
            return await run(lambda _: self._base(path))
        show(WorkState(WorkStage.FETCHING if wish.holders else WorkStage.LOGITS))
        most_bytes = self._tools.logits_bytes(about.vocabulary)
        await run(lambda _: self._store.make_room(most_bytes, {wish.fingerprint}))
        if wish.holders:
            try:
                await self._from_others(wish, about, sample, path, show)
            except FetchError as error:
                # What they all lack on this text they will not have: it is a text of this node's.
                patient = failures < FETCHES_BEFORE_COMPUTING
                if not error.lacking and (patient or not wish.computes):
                    raise
            else:
                return await run(lambda _: self._base(path))
        elif not wish.computes:
            raise WaitingError("another node is to compute the whole model's logits")
        show(WorkState(WorkStage.LOGITS))
        await run(lambda _: same_model(self._tools, wish.fingerprint, wish.files))
        await run(lambda _: self._store.comes(path, ""))
        await self._tools.save_logits(
            Path(wish.files[0]),
            sample.path,
            path,
            await run(lambda _: self._tools.build()),
            progress=lambda share: show(WorkState(WorkStage.LOGITS, share)),
            started=self._hold.started,
        )
        # Of a file that was replaced meanwhile it is not known which one was computed.
        try:
            await run(lambda _: same_model(self._tools, wish.fingerprint, wish.files))
        except RefusedError:
            await run(lambda _: path.unlink(missing_ok=True))
            raise
        return await run(lambda _: self._base(path))

    def _base(self, path: Path) -> Base:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Base(path, LogitsOrigin(sha256, self._store.origin(path) or ""))

    def _usable(self, path: Path, about: About, stopped: Callable[[], bool]) -> bool:
        if not path.exists():
            return False
        try:
            if self._store.origin(path) is None:
                raise LogitsError("it is not known who computed them")
            self._tools.check_logits(path, vocabulary=about.vocabulary, stopped=stopped)
        except ValueError as error:
            if not stopped():
                _log.warning("logits that lie here are of no use", file=str(path), why=str(error))
                path.unlink(missing_ok=True)
            return False
        return True

    async def _from_others(
        self, wish: ShardWish, about: About, sample: Sample, path: Path, show: Show
    ) -> None:
        """:raises FetchError: nobody gives any that are this model's."""
        run = self._thread.run
        said, lacking = FetchError("no other node is known to have the logits"), True
        for holder in wish.holders:
            given = (holder.node, wish.fingerprint, sample.sha256)
            if given in self._wrong:
                said = FetchError(f"{holder.node} gave logits that are not this model's")
                continue
            try:
                part = await run(partial(self._fetch, wish, holder, about, sample, path, show))
                await self._try(wish, sample, part, show)
            except FetchError as error:
                said, lacking = error, lacking and error.lacking
            except DifferError as error:
                _log.warning(
                    "a node gave logits that are not this model's",
                    node=holder.node, model=wish.model, text=sample.text.domain, why=str(error),
                )  # fmt: skip
                self._wrong[given] = None
                while len(self._wrong) > WRONG_MAX:
                    del self._wrong[next(iter(self._wrong))]
                said = FetchError(f"{holder.node}: {error}")
                await run(partial(_remove, part))
            else:
                await run(partial(self._adopt, part, path, holder.node))
                return
        raise FetchError(said.message, lacking=lacking)

    async def _try(self, wish: ShardWish, sample: Sample, part: Path, show: Show) -> None:
        """:raises DifferError: these are not the model's."""
        run = self._thread.run
        show(WorkState(WorkStage.FETCHING, 1.0, "a part of what came is computed anew"))
        await run(lambda _: same_model(self._tools, wish.fingerprint, wish.files))
        build = await run(lambda _: self._tools.build())
        try:
            await self._tools.try_logits(
                Path(wish.files[0]), sample.path, part, build, started=self._hold.started
            )
        except DifferError:
            # Nobody is to blame where it is ours that is another one by now.
            await run(lambda _: same_model(self._tools, wish.fingerprint, wish.files))
            raise

    def _adopt(self, part: Path, path: Path, node: str, _: Callable[[], bool]) -> None:
        self._store.comes(path, node)
        part.replace(path)
        sync_folder(path.parent)

    def _fetch(
        self,
        wish: ShardWish,
        holder: Holder,
        about: About,
        sample: Sample,
        path: Path,
        show: Show,
        stopped: Callable[[], bool],
    ) -> Path:
        def accept(file: Path) -> None:
            self._tools.check_logits(file, vocabulary=about.vocabulary, stopped=stopped)

        return fetch_logits(
            self._tools.tls,
            (holder,),
            wish.fingerprint,
            sample.sha256,
            path.parent,
            self._tools.logits_bytes(about.vocabulary),
            lambda have, total: show(WorkState(WorkStage.FETCHING, have / max(1, total))),
            accept,
            stopped,
        )


def _remove(path: Path, _: Callable[[], bool]) -> None:
    path.unlink(missing_ok=True)
