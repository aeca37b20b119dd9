"""The expert shards of a real node, put together behind `shard_port.ShardPort`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from meshd.errors import UserError
from meshd.experts.ranking import Ranking
from meshd.experts.texts import calibration_digest, texts_of
from meshd.experts.wish import Holder, RankingWish, ShardWish, Text, Workshop, WorkStage, WorkState
from meshd.mesh.view import MeshView
from meshd.mesh_routes import Ways
from meshd.pipeline import Proposal
from meshd.shard_wants import CALIBRATION_DIGITS, Calibration, Shards, ShardWant, Target
from meshd.stuck_workers import StuckWorkers

_log = structlog.get_logger(__name__)

_HOLDERS_MOST = 8
# A file that was not there may have come, and one that was read may have been changed.
_TEXTS_AGAIN_S = 60.0


@dataclass(slots=True)
class _Texts:
    """Of one calibration. :ivar problem: why there are none, or why those are old.

    :ivar seen: size, time and inode of the user's files when they were read.
    """

    texts: tuple[Text, ...] = ()
    digest: str = ""
    seen: tuple[object, ...] = ()
    problem: str = ""
    tried_s: float = 0.0
    task: asyncio.Task[None] | None = None


class Settled:
    """Since when this node has settled on which shard."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[Target, float]] = {}

    def look(self, wants: Iterable[ShardWant], now_s: float) -> None:
        since: dict[str, tuple[Target, float]] = {}
        for want in wants:
            if want.target is None:
                continue
            old = self._since.get(want.model)
            same = old is not None and old[0].key == want.target.key
            since[want.model] = (want.target, old[1] if old is not None and same else now_s)
        self._since = since

    def targets(self, now_s: float) -> dict[str, Target]:
        return {
            model: replace(target, age_s=now_s - since_s)
            for model, (target, since_s) in self._since.items()
        }


class NodeShards:
    """:param folder: where a user's texts are laid down. :param wake: called when the brain should
    look again. :param clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        workshop: Workshop,
        wake: Callable[[], None],
        *,
        texts: Callable[[Calibration, Path], tuple[Text, ...]] = texts_of,
        digest: Callable[[tuple[Text, ...]], str] = calibration_digest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._workshop = workshop
        self._wake = wake
        self._texts_of = texts
        self._digest_of = digest
        self._clock = clock
        self._known: dict[Calibration, _Texts] = {}
        self._settled = Settled()
        self._stuck = StuckWorkers()
        self._problems: dict[str, str] = {}

    def now(self) -> Shards:
        states = dict(self._workshop.states())
        for fingerprint, problem in self._problems.items():
            states[fingerprint] = WorkState(WorkStage.FAILED, detail=problem)
        return Shards(
            rankings=self._workshop.rankings(),
            shards=self._workshop.shards(),
            states=states,
            logits=self._workshop.logits(),
            looked=self._workshop.looked,
            targets=self._settled.targets(self._clock()),
            passed=self._stuck.passed,
            calibrations={one: known.digest for one, known in self._known.items() if known.digest},
        )

    def took(self, proposal: Proposal, ways: Ways | None) -> None:
        share = proposal.share
        wants = share.shard_wants if share is not None else ()
        self._settled.look(wants, self._clock())
        if share is not None:
            self._stuck.look(wants, share.view, self._clock())
        rankings: list[RankingWish] = []
        shards: list[ShardWish] = []
        self._problems = {}
        for want in wants:
            found = self._texts(want.calibration)
            if found.problem and not found.texts:
                self._problems[want.fingerprint] = found.problem
            if not found.texts or share is None:
                continue
            addresses = ways.addresses if ways is not None else {}
            rankings.append(ranking_wish(want, found.texts, share.view, addresses))
            ranking = self._workshop.rankings().get(want.fingerprint)
            if want.target is not None and ranking is not None:
                shards.append(
                    shard_wish(want, want.target, ranking, found.texts, share.view, addresses)
                )
        self._workshop.want(
            tuple(rankings),
            tuple(shards),
            frozenset(want.serves for want in wants if want.serves) | read_by_engines(proposal),
        )

    async def close(self) -> None:
        tasks = [one.task for one in self._known.values() if one.task is not None]
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._workshop.close()

    # -- inside ---------------------------------------------------------------------------------

    def _texts(self, calibration: Calibration) -> _Texts:
        known = self._known.setdefault(calibration, _Texts())
        if known.texts and not calibration:
            # What is shipped does not change.
            return known
        again = self._clock() - known.tried_s >= _TEXTS_AGAIN_S
        if known.task is None and (again or not known.tried_s):
            known.tried_s = self._clock()
            known.task = asyncio.create_task(self._lay_down(calibration, known))
        return known

    async def _lay_down(self, calibration: Calibration, known: _Texts) -> None:
        problem = ""
        try:
            found = await asyncio.to_thread(self._read, calibration, known)
            if found is None and not known.problem:
                return
            if found is not None:
                known.seen, known.texts, known.digest = found
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename or self._folder}: {error.strerror}"
        finally:
            known.task = None
        if problem != known.problem and known.texts and problem:
            _log.warning("texts that were changed are of no use, the old ones stay", why=problem)
        known.problem = problem
        self._wake()

    def _read(
        self, calibration: Calibration, known: _Texts
    ) -> tuple[tuple[object, ...], tuple[Text, ...], str] | None:
        """None where nothing changed. Blocks."""
        # Before they are read: what is written meanwhile is seen next time.
        seen = tuple(_state(Path(path)) for _, path in calibration)
        if known.texts and seen == known.seen:
            return None
        texts = self._texts_of(calibration, self._folder)
        return seen, texts, self._digest_of(texts)[:CALIBRATION_DIGITS]


def _state(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def read_by_engines(proposal: Proposal) -> frozenset[str]:
    """Keys of the shards that engines read, also of models that nothing is made for any more."""
    uses = (one.decision.shard for one in proposal.running)
    return frozenset(use.key for use in uses if use is not None)


def ranking_wish(
    want: ShardWant, texts: tuple[Text, ...], view: MeshView, addresses: Mapping[str, str]
) -> RankingWish:
    """:param addresses: ``host:port`` of nodes that are known to answer."""
    return RankingWish(
        fingerprint=want.fingerprint,
        model=want.model,
        files=want.files,
        texts=texts,
        computes=want.works,
        wanted=want.ranking,
        holders=_holders(want.ranking_holders, view, addresses),
    )


def shard_wish(
    want: ShardWant,
    target: Target,
    ranking: Ranking,
    texts: tuple[Text, ...],
    view: MeshView,
    addresses: Mapping[str, str],
) -> ShardWish:
    """:param ranking: of the model, which is here."""
    return ShardWish(
        key=target.key,
        fingerprint=want.fingerprint,
        model=want.model,
        files=want.files,
        ranking=ranking,
        selection=target.selection,
        texts=texts,
        holders=_holders(want.logits_holders, view, addresses),
        computes=want.works,
    )


def _holders(
    nodes: tuple[str, ...], view: MeshView, addresses: Mapping[str, str]
) -> tuple[Holder, ...]:
    found = []
    for node in nodes[:_HOLDERS_MOST]:
        member = view.member(node)
        told = member.record.addresses if member is not None else ()
        address = addresses.get(node) or next(iter(told), "")
        if address:
            found.append(Holder(node, address))
    return tuple(found)
