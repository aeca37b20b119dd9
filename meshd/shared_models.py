"""Tells the gateway whose files other nodes may read: weights, to seed their tensor caches with,
and what was found out of experts.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from meshd.gateway.model_table import SharedModel, write_models
from meshd.paths import Paths
from meshd.seeding.store import Store

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SharedExperts:
    """What this node found out of a model's experts.

    :ivar ranking: file of its ranking, or "". :ivar logits: files by the SHA-256 of their text.
    """

    ranking: str = ""
    logits: Mapping[str, str] = field(default_factory=dict)


class SharedModels:
    """Both who looks for models and who ranks their experts know a part of the table. What is said
    twice is not written twice. Blocks; for any thread.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._held: Mapping[str, tuple[str, ...]] = {}
        self._experts: Mapping[str, SharedExperts] = {}
        self._one_at_a_time = threading.Lock()

    def held(self, held: Mapping[str, tuple[str, ...]]) -> None:
        """:param held: the files of each model here, by fingerprint."""
        with self._one_at_a_time:
            self._held = held
            share_models(self._paths, held, self._experts)

    def experts(self, experts: Mapping[str, SharedExperts]) -> None:
        """:param experts: by fingerprint; of models that are not held nothing is shared."""
        with self._one_at_a_time:
            if experts != self._experts and share_models(self._paths, self._held, experts):
                self._experts = dict(experts)


def share_models(
    paths: Paths,
    held: Mapping[str, tuple[str, ...]],
    experts: Mapping[str, SharedExperts] | None = None,
) -> bool:
    """Whether it was written.

    :param held: the files of each model here, by fingerprint. :param experts: likewise.
    """
    store = Store(paths.rpc_cache)
    known = experts or {}
    table = {
        fingerprint: SharedModel(
            files,
            str(store.manifest_path(fingerprint)),
            known.get(fingerprint, SharedExperts()).ranking,
            known.get(fingerprint, SharedExperts()).logits,
        )
        for fingerprint, files in held.items()
    }
    try:
        write_models(paths.shared_models, table)
    except OSError as error:
        # Others then seed from other nodes, or are sent their weights.
        _log.warning("the table of models cannot be written", error=str(error))
        return False
    return True
