"""One wish for a ranking, done: what is here, what another node has, or what has to be counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from meshd.experts import ranking_file
from meshd.experts.hold import Hold
from meshd.experts.peer_files import fetch_ranking
from meshd.experts.ranking import Ranking, RankingError
from meshd.experts.ranking_shelf import RankingShelf
from meshd.experts.stoppable_thread import StoppableThread
from meshd.experts.wish import RankingWish, WorkStage, WorkState
from meshd.experts.work_tools import About, RefusedError, Tools, WaitingError

Show = Callable[[WorkState], None]

# Whoever has it may just be starting again; counting takes hours.
FETCHES_BEFORE_COUNTING = 3


class RankingWork:
    """:param counting: folder for what is half counted."""

    def __init__(
        self,
        tools: Tools,
        shelf: RankingShelf,
        counting: Path,
        thread: StoppableThread,
        hold: Hold,
    ) -> None:
        self._tools = tools
        self._shelf = shelf
        self._counting = counting
        self._thread = thread
        self._hold = hold

    def look(self, wish: RankingWish) -> tuple[Ranking | None, bool]:
        """What is here and nearest to the wish, and whether it is all that is wished. Blocks."""
        found = self._shelf.of(wish.fingerprint, lambda: self._routed(wish))
        if wish.wanted:
            right = [one for one in found if one.digest == wish.wanted]
            return next(iter((*right, *found)), None), bool(right)
        calibration = self._tools.calibration(wish.texts)
        own = [one for one in found if one.calibration == calibration]
        # Until there is one by the texts that are asked for, another's is better than none.
        return next(iter((*own, *found)), None), bool(own)

    async def make(self, wish: RankingWish, show: Show, failures: int) -> Ranking:
        """:param failures: how often it was tried in vain.

        :raises WaitingError: it is for another node to count.
        """
        if wish.holders and not (wish.computes and failures >= FETCHES_BEFORE_COUNTING):
            show(WorkState(WorkStage.FETCHING))
            ranking = await self._thread.run(partial(self._fetch, wish))
        elif wish.computes:
            ranking = await self._count(wish, show)
        else:
            raise WaitingError("another node is to count how often each expert is chosen")
        await self._thread.run(lambda _: self._keep(wish, ranking))
        return ranking

    def _keep(self, wish: RankingWish, ranking: Ranking) -> None:
        self._shelf.keep(ranking)
        # What was counted of it piece by piece is of no more use, whoever counted the rest.
        shutil.rmtree(self._folder(wish, ranking.calibration), ignore_errors=True)

    def _folder(self, wish: RankingWish, calibration: str) -> Path:
        return self._counting / f"{wish.fingerprint}-{calibration[:16]}"

    def _fetch(self, wish: RankingWish, stopped: Callable[[], bool]) -> Ranking:
        about = self._about(wish)

        def accept(text: bytes) -> Ranking:
            try:
                found = ranking_file.decode(
                    text, fingerprint=wish.fingerprint, experts=about.experts, used=about.used
                )
            except RankingError as error:
                raise ValueError(str(error)) from None
            if wish.wanted and found.digest != wish.wanted:
                raise ValueError(f"its ranking is {found.digest}, not {wish.wanted}")
            return found

        return fetch_ranking(self._tools.tls, wish.holders, wish.fingerprint, accept, stopped)

    async def _count(self, wish: RankingWish, show: Show) -> Ranking:
        show(WorkState(WorkStage.RANKING))
        run = self._thread.run
        calibration = await run(lambda _: self._tools.calibration(wish.texts))
        about = await run(lambda _: self._about(wish))
        counted = await run(lambda _: self._counted(wish, calibration, about))
        if wish.wanted and counted:
            # The same again would be what comes of it.
            raise RefusedError(
                f"no node gives the ranking {wish.wanted} that the mesh settled on, and what was "
                "counted here is another"
            )
        folder = self._folder(wish, calibration)
        await run(lambda _: same_model(self._tools, wish.fingerprint, wish.files))
        await run(lambda _: folder.mkdir(parents=True, exist_ok=True))
        ranking = await self._tools.count(
            wish.files,
            tuple(Path(text.ranks) for text in wish.texts),
            folder,
            await run(lambda _: self._tools.build()),
            fingerprint=wish.fingerprint,
            experts=about.experts,
            progress=lambda share: show(WorkState(WorkStage.RANKING, share)),
            started=self._hold.started,
        )
        # Of a file that was replaced meanwhile it is not known which one was counted.
        await run(lambda _: same_model(self._tools, wish.fingerprint, wish.files))
        return ranking_file.checked(
            ranking, fingerprint=wish.fingerprint, experts=about.experts, used=about.used
        )

    def _counted(self, wish: RankingWish, calibration: str, about: About) -> bool:
        found = self._shelf.of(wish.fingerprint, lambda: (about.experts, about.used))
        return any(one.calibration == calibration for one in found)

    def _routed(self, wish: RankingWish) -> tuple[tuple[int, ...], int]:
        about = self._about(wish)
        return about.experts, about.used

    def _about(self, wish: RankingWish) -> About:
        return self._tools.about(wish.files)


def same_model(tools: Tools, fingerprint: str, files: tuple[str, ...]) -> None:
    """:raises RefusedError: the files are not (any more) those of this model."""
    found = tools.fingerprint([Path(file) for file in files])
    if found != fingerprint:
        raise RefusedError(f"{files[0]}: its content changed ({found}, it was {fingerprint})")
