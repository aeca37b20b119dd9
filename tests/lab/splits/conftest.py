"""One mesh of three for all tests of this folder: no node can hold the model, any two can."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster
from tests.lab.conftest import tracked_cluster
from tests.lab.inside import PROMPT
from tests.lab.splits.split import Split, put_right, text_alone, texts, wait_split

Measured = Callable[..., None]
TOKENS = 400


@pytest.fixture(scope="package")
def booted(lowerdir: str, scratch: Path) -> Iterator[tuple[Cluster, float]]:
    """The mesh, and the seconds from the start of all its nodes to the first answer."""
    with tracked_cluster(["ada", "bob", "cleo"], lowerdir, scratch) as nodes:
        began_at = time.monotonic()
        nodes.start(texts(nodes), settle=False)
        wait_split(nodes)
        yield nodes, time.monotonic() - began_at


@pytest.fixture
def nodes(booted: tuple[Cluster, float]) -> Cluster:
    return booted[0]


@pytest.fixture(scope="package")
def last(booted: tuple[Cluster, float]) -> list[Split]:
    """The split as it was before the newest test."""
    return []


@pytest.fixture
def split(nodes: Cluster, last: list[Split]) -> Split:
    """All well, and nobody blamed for anything."""
    last[:] = [put_right(nodes, last[0] if last else None)]
    return last[0]


@pytest.fixture(scope="package")
def said(booted: tuple[Cluster, float]) -> str:
    """What an engine alone says in `TOKENS` tokens."""
    nodes, _ = booted
    return text_alone(nodes.nodes[2], TOKENS, PROMPT)
