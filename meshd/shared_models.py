"""Tells the gateway whose files other nodes may read, to seed their tensor caches with them."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from meshd.gateway.model_table import SharedModel, write_models
from meshd.paths import Paths
from meshd.seeding.store import Store

_log = structlog.get_logger(__name__)


def share_models(paths: Paths, held: Mapping[str, tuple[str, ...]]) -> None:
    """:param held: the files of each model here, by fingerprint."""
    store = Store(paths.rpc_cache)
    table = {
        fingerprint: SharedModel(files, str(store.manifest_path(fingerprint)))
        for fingerprint, files in held.items()
    }
    try:
        write_models(paths.shared_models, table)
    except OSError as error:
        # Others then seed from other nodes, or are sent their weights.
        _log.warning("the table of models cannot be written", error=str(error))
