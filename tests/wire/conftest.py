"""The engine that this tier's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd.engine.locate import Place, in_root, require
from meshd.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def engine() -> Place:
    """This checkout's engine, else the one that meshd itself would take."""
    try:
        place = in_root(REPOSITORY / ".cache/engine") or require()
    except UserError as error:
        pytest.skip(str(error))
    if place.missing:
        pytest.skip(f"the engine in {place.root} lacks {', '.join(place.missing)} (make engine)")
    return place
