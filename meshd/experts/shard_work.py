"""One wish for a shard, done: its file, and what it loses beside the whole model's logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.experts import certificate as certificates
from meshd.experts.certificate import Certificate, CertificateError
from meshd.experts.hold import Hold
from meshd.experts.logits_file import TOKENS
from meshd.experts.logits_origin import LogitsOrigin
from meshd.experts.ranking_work import Show, same_model
from meshd.experts.shard_key import shard_key
from meshd.experts.shard_note import TEXTS_MAX, Figure, ShardNote
from meshd.experts.shard_shelf import ShardShelf
from meshd.experts.stoppable_thread import StoppableThread
from meshd.experts.whole_logits import Base, Sample, WholeLogits, samples_of
from meshd.experts.wish import Shard, ShardWish, WorkStage, WorkState
from meshd.experts.work_tools import RefusedError, Tools, WaitingError
from meshd.quality import Fidelity

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What is here of a wish.

    :ivar texts: SHA-256 of those to measure on.
    :ivar shard: if it was ever measured; ``whole`` when it was on all of these texts.
    """

    texts: frozenset[str]
    shard: Shard | None = None
    whole: bool = False


class ShardWork:
    """:param certificates: their folder. :param keep: keys of shards that stay, whatever room is
    needed.
    """

    def __init__(
        self,
        tools: Tools,
        shelf: ShardShelf,
        certificates: Path,
        logits: WholeLogits,
        thread: StoppableThread,
        hold: Hold,
        keep: Callable[[], frozenset[str]],
    ) -> None:
        self._tools = tools
        self._shelf = shelf
        self._certificates = certificates
        self._logits = logits
        self._thread = thread
        self._hold = hold
        self._keep = keep

    def all(self) -> dict[str, Shard]:
        """Those that lie here whole and measured. Blocks."""
        found = {}
        for note in list(self._shelf.notes()):
            shard = self._certified(note)
            if shard is not None:
                found[note.key] = shard
        return found

    def look(self, wish: ShardWish) -> Found:
        """Blocks. :raises RefusedError: a text is not there."""
        samples = samples_of(wish.texts)
        texts = frozenset(sample.sha256 for sample in samples)
        note = self._shelf.note(wish.key)
        if note is None:
            return Found(texts)
        shard = self._certified(note)
        whole = shard is not None and shard.measured == _figures(note, samples)
        if whole:
            self._shelf.used(wish.key)
        return Found(texts, shard, whole)

    async def make(self, wish: ShardWish, show: Show, failures: int) -> None:
        """:param failures: how often it was tried in vain.

        :raises WaitingError: another node is to compute the logits, or the ranking is to come.
        """
        run = self._thread.run
        before = await run(lambda _: self._before(wish))
        right = wish.key == shard_key(wish.fingerprint, wish.ranking.digest, wish.selection)
        # One that is whole is measured on other texts too, whatever ranking there is by now.
        if not right and before is None:
            raise WaitingError("its experts were chosen by a ranking that is not the one here")
        samples = await run(lambda _: samples_of(wish.texts))
        about = await run(lambda _: self._tools.about(wish.files))
        await run(lambda stopped: self._write(wish, show, stopped))
        note = await run(lambda _: self._noted(wish))
        known = _known(note)
        lacking = [one for one in samples if one.sha256 not in known]
        if await run(lambda _: self._certified(note)) is not None:
            show = _meanwhile(show, lacking)
        parts = {one.sha256: _nth(show, number, len(samples)) for number, one in enumerate(samples)}
        # All logits first: where another node is to compute some of them, none is measured yet.
        bases = [
            await self._logits.on(wish, about, sample, parts[sample.sha256], failures)
            for sample in lacking
        ]
        for sample, base in zip(lacking, bases, strict=True):
            try:
                await self._measure(wish, sample, base, parts[sample.sha256])
            except UserError:
                if failures:
                    # Once may be bad luck; twice, and they may be what is wrong.
                    await run(lambda _: base.path.unlink(missing_ok=True))  # noqa: B023
                raise
        build = await run(lambda _: self._tools.build())
        await run(lambda _: self._certify(wish, samples, build, None if right else before))

    def _write(self, wish: ShardWish, show: Show, stopped: Callable[[], bool]) -> None:
        if self._shelf.note(wish.key) is not None:
            return
        show(WorkState(WorkStage.WRITING))
        same_model(self._tools, wish.fingerprint, wish.files)
        size_bytes = self._tools.shard_bytes(wish.files, wish.selection)
        self._shelf.make_room(wish.key, size_bytes, self._keep())

        def progress(done: int, total: int) -> None:
            self._hold.wait(stopped)
            show(WorkState(WorkStage.WRITING, done / max(1, total)))

        written = self._tools.write(
            wish.files,
            wish.selection,
            self._shelf.path(wish.key),
            progress=progress,
            stopped=stopped,
        )
        self._shelf.adopt(wish.key, wish.fingerprint, written)

    async def _measure(self, wish: ShardWish, sample: Sample, base: Base, show: Show) -> None:
        show(WorkState(WorkStage.CERTIFYING))
        run = self._thread.run
        measured = await self._tools.measure(
            self._shelf.path(wish.key),
            sample.path,
            base.path,
            sample.text.domain,
            await run(lambda _: self._tools.build()),
            progress=lambda share: show(WorkState(WorkStage.CERTIFYING, share)),
            started=self._hold.started,
        )

        def remember(_: Callable[[], bool]) -> None:
            note = self._noted(wish)
            others = tuple(one for one in note.figures if one.text != sample.sha256)
            figures = (*others, Figure(sample.sha256, measured, base.origin))[-TEXTS_MAX:]
            self._shelf.remember(replace(note, figures=figures))

        await run(remember)

    def _noted(self, wish: ShardWish) -> ShardNote:
        note = self._shelf.note(wish.key)
        if note is None:
            raise RefusedError(f"{self._shelf.path(wish.key)}: it was changed by somebody else")
        return note

    def _before(self, wish: ShardWish) -> Shard | None:
        note = self._shelf.note(wish.key)
        return self._certified(note) if note is not None else None

    def _certify(
        self,
        wish: ShardWish,
        samples: tuple[Sample, ...],
        build: EngineBuild,
        before: Shard | None,
    ) -> None:
        """:param before: what was known of it, where it was chosen by another ranking."""
        note = self._noted(wish)
        figures, known = _figures(note, samples), _known(note)
        if figures is None:
            raise RefusedError(f"{self._shelf.path(wish.key)}: it was changed by somebody else")
        kept = [wish.ranking.mass(block, ids) for block, ids in enumerate(wish.selection) if ids]
        certificates.write(
            self._certificate(wish.key),
            Certificate(
                key=wish.key,
                fingerprint=wish.fingerprint,
                ranking=before.ranking if before else wish.ranking.digest,
                shard_sha256=note.sha256,
                size_bytes=note.size_bytes,
                experts=max(map(len, wish.selection)),
                experts_all=max(map(len, wish.ranking.counts)),
                selection=wish.selection,
                mass=before.mass if before else sum(kept) / len(kept),
                least_mass=before.least_mass if before else min(kept),
                texts={one.text.domain: one.sha256 for one in samples},
                logits={one.text.domain: known[one.sha256][1] for one in samples},
                engine=f"{build.version} {build.package}".strip(),
                tokens=TOKENS,
                measured=figures,
            ),
        )

    def _certified(self, note: ShardNote) -> Shard | None:
        """What was found out of a shard whose file is sound; None where that was not finished."""
        path = self._certificate(note.key)
        try:
            found = certificates.read(path, key=note.key)
        except CertificateError as error:
            if path.exists():
                _log.warning("a certificate is of no use", file=str(path), why=str(error))
                path.unlink(missing_ok=True)
            return None
        if (found.shard_sha256, found.size_bytes) != (note.sha256, note.size_bytes):
            return None
        return certificates.shard_of(found, self._shelf.path(note.key))

    def _certificate(self, key: str) -> Path:
        return self._certificates / f"{key}.json"


def _figures(note: ShardNote, samples: tuple[Sample, ...]) -> tuple[Fidelity, ...] | None:
    """Of each text; None where one was not measured."""
    known = _known(note)
    if any(sample.sha256 not in known for sample in samples):
        return None
    return tuple(replace(known[one.sha256][0], domain=one.text.domain) for one in samples)


def _known(note: ShardNote) -> dict[str, tuple[Fidelity, LogitsOrigin]]:
    """By the text's SHA-256; what was measured beside nobody knows whose logits is none."""
    return {one.text: (one.measured, one.logits) for one in note.figures if one.logits is not None}


def _meanwhile(show: Show, lacking: Sequence[Sample]) -> Show:
    """For a shard that serves on what was measured before: what is not known of it yet."""
    texts = ", ".join(one.text.domain for one in lacking)
    detail = f"it is measured on {texts}" if texts else ""
    return lambda state: show(replace(state, detail=state.detail or detail))


def _nth(show: Show, number: int, count: int) -> Show:
    """Progress of one of several equal parts as that of all."""
    return lambda state: show(replace(state, progress=(number + state.progress) / count))
