"""What this node measures before it plans: hardware, engine, and the models on its disks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import structlog

from meshd.config.load import Loaded
from meshd.config.settings import Config, ModelSettings
from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.errors import UserError
from meshd.mesh.record import HeldModel
from meshd.models.facts_cache import FactsCache
from meshd.models.library import Book, Library
from meshd.models.shelf import find, is_glob
from meshd.node.observe import observe as observe_hardware
from meshd.paths import Paths
from meshd.pipeline import Observation, Sought
from meshd.planner.view import Candidate
from meshd.speed_watch import SpeedWatch

_log = structlog.get_logger(__name__)

_ENGINE_GROUP = "/mesh.slice/mesh-engine.slice"
# Walking large model folders takes time, and files there seldom come or go.
_SCAN_INTERVAL_S = 60.0


class NodeObserver:
    """The real `supervisor.Observer`. Blocking reads go to threads; what did not change on disk
    is not read again.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        systemd: bool = False,
        speeds: SpeedWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[Mapping[str, tuple[str, ...]]], None] = lambda _: None,
    ) -> None:
        """:param share: told, in a thread, the files of all models here by fingerprint when that
        changed.
        """
        self._paths = paths
        self._engine_group = _ENGINE_GROUP if systemd else None
        self._speeds = speeds or SpeedWatch(paths.speeds, measures=False)
        self._clock = clock
        self._library = Library(FactsCache(paths.state / "facts.json"))
        # A preview looks while a pass does, and the library is for one thread at a time.
        self._reading = asyncio.Lock()
        self._build: EngineBuild | None = None
        self._known: dict[ModelSettings, Candidate] = {}
        self._held: tuple[Book, ...] = ()
        self._held_in: tuple[Path, ...] | None = None
        self._scanned_s = 0.0
        self._share = share
        self._shared: Mapping[str, tuple[str, ...]] | None = None

    async def __call__(self, loaded: Loaded, sought: tuple[Sought, ...] = ()) -> Observation:
        hardware = await observe_hardware(engine_group=self._engine_group)
        build, problem = await asyncio.to_thread(self._engine)
        await asyncio.to_thread(self._speeds.refresh)
        self._speeds.look(hardware, hardware.gpus, build)
        speeds = tuple(self._speeds.now().values())
        async with self._reading:
            return await asyncio.to_thread(
                lambda: Observation(
                    hardware,
                    build,
                    problem,
                    (*self._candidates(loaded.config), *self._others(loaded.config, sought)),
                    tuple(map(_held, self._shown(loaded.config))),
                    speeds,
                )
            )

    def _engine(self) -> tuple[EngineBuild | None, str]:
        try:
            self._build = describe(require(self._paths))
        except UserError as error:
            if self._build is None:
                return None, str(error)
            # While its packages are upgraded it cannot be asked; what runs of it goes on.
            _log.warning("the engine cannot be asked, going by what it said last", error=str(error))
        return self._build, ""

    def _candidates(self, config: Config) -> tuple[Candidate, ...]:
        folders = _folders(config)
        candidates = tuple(self._candidate(model, folders) for model in config.models)
        self._known = {
            model: candidate
            for model, candidate in zip(config.models, candidates, strict=True)
            if candidate.facts
        }
        return candidates

    def _candidate(self, model: ModelSettings, folders: tuple[Path, ...]) -> Candidate:
        try:
            return _found(model.name, self._library.book(find(model.source, folders)))
        except (UserError, OSError) as error:
            known = self._known.get(model)
            if known is None:
                return Candidate(model.name, None, problem=str(error))
            # A share that is away for a moment, or a file half copied: what runs of it goes on.
            _log.warning("a model cannot be read, going by what it was", error=str(error))
            return known

    def _others(self, config: Config, sought: tuple[Sought, ...]) -> tuple[Candidate, ...]:
        """Models that other nodes name. Only this node's own folders are searched for them."""
        if not sought:
            return ()
        folders, books = _folders(config), self._scan(config)
        by_content = {book.fingerprint: book for book in books}
        return tuple(
            _found(one.model, by_content[one.fingerprint])
            if one.fingerprint in by_content
            else self._other(one, folders, books)
            for one in sought
        )

    def _other(self, one: Sought, folders: tuple[Path, ...], books: tuple[Book, ...]) -> Candidate:
        source = PurePosixPath(one.source)
        name = source.name if source.is_absolute() else one.source
        if is_glob(name):
            # Others choose the pattern, so it costs what looking at our own list of names costs.
            fit = [book for book in books if fnmatchcase(_file_name(book), source.name)]
            if len(fit) == 1:
                return _found(one.model, fit[0])
            text = f"{len(fit)} models in this node's folders match {source.name}"
            return Candidate(one.model, None, problem=text)
        try:
            return _found(one.model, self._library.book(find(name, folders)))
        except (UserError, OSError) as error:
            return Candidate(one.model, None, problem=str(error))

    def _shown(self, config: Config) -> tuple[Book, ...]:
        """What is held, after others may read it, and what else is configured."""
        books = self._scan(config)
        known = self._known.values()
        here = {one.fingerprint: one.facts.files for one in known if one.facts is not None}
        here |= {book.fingerprint: book.facts.files for book in books}
        if here != self._shared:
            self._share(here)
            self._shared = here
        return books

    def _scan(self, config: Config) -> tuple[Book, ...]:
        folders, now_s = _folders(config), self._clock()
        if folders != self._held_in or now_s - self._scanned_s >= _SCAN_INTERVAL_S:
            self._held = self._library.held(folders)
            self._held_in, self._scanned_s = folders, now_s
        return self._held


def _folders(config: Config) -> tuple[Path, ...]:
    return tuple(Path(folder) for folder in config.node.model_dirs)


def _found(model: str, book: Book) -> Candidate:
    return Candidate(
        model,
        book.facts,
        identity=book.identity,
        modified_s=book.modified_s,
        fingerprint=book.fingerprint,
    )


def _file_name(book: Book) -> str:
    return Path(book.facts.files[0]).name


def _held(book: Book) -> HeldModel:
    facts = book.facts
    return HeldModel(
        fingerprint=book.fingerprint,
        file=_file_name(book),
        size_bytes=facts.file_bytes,
        architecture=facts.architecture,
        quantisation=facts.quantisation,
    )
