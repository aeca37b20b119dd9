"""What this node measures before it plans: hardware, engine, and the models of its config."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from meshd.config.load import Loaded
from meshd.config.settings import Config, ModelSettings
from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.locate import require
from meshd.errors import UserError
from meshd.models.facts import GgufFacts
from meshd.models.facts_cache import FactsCache
from meshd.models.shelf import find
from meshd.node.observe import observe as observe_hardware
from meshd.paths import Paths
from meshd.pipeline import Observation
from meshd.planner.view import Candidate

_log = structlog.get_logger(__name__)

_ENGINE_GROUP = "/mesh.slice/mesh-engine.slice"


class NodeObserver:
    """The real `supervisor.Observer`. Blocking reads go to threads; what did not change on disk
    is not read again.
    """

    def __init__(self, paths: Paths, *, systemd: bool = False) -> None:
        self._paths = paths
        self._engine_group = _ENGINE_GROUP if systemd else None
        self._facts = FactsCache(paths.state / "facts.json")
        # A preview looks while a pass does, and the cache is for one thread at a time.
        self._reading = asyncio.Lock()
        self._build: EngineBuild | None = None
        self._known: dict[ModelSettings, Candidate] = {}

    async def __call__(self, loaded: Loaded) -> Observation:
        hardware = await observe_hardware(engine_group=self._engine_group)
        build, problem = await asyncio.to_thread(self._engine)
        async with self._reading:
            candidates = await asyncio.to_thread(self._candidates, loaded.config)
        return Observation(hardware, build, problem, candidates)

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
        folders = tuple(Path(folder) for folder in config.node.model_dirs)
        candidates = tuple(self._candidate(model, folders) for model in config.models)
        self._known = {
            model: candidate
            for model, candidate in zip(config.models, candidates, strict=True)
            if candidate.facts
        }
        return candidates

    def _candidate(self, model: ModelSettings, folders: tuple[Path, ...]) -> Candidate:
        try:
            return _found(model.name, self._facts.facts(find(model.source, folders)))
        except (UserError, OSError) as error:
            known = self._known.get(model)
            if known is None:
                return Candidate(model.name, None, problem=str(error))
            # A share that is away for a moment, or a file half copied: what runs of it goes on.
            _log.warning("a model cannot be read, going by what it was", error=str(error))
            return known


def _found(model: str, facts: GgufFacts) -> Candidate:
    """With an identity that changes when any of its files is replaced."""
    stamps = [(file, Path(file).stat()) for file in facts.files]
    return Candidate(
        model,
        facts,
        identity="|".join(f"{file}:{st.st_size}:{st.st_mtime_ns}" for file, st in stamps),
        modified_s=max(int(st.st_mtime) for _, st in stamps),
    )
