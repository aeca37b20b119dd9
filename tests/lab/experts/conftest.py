"""One mesh of three for all tests of this folder: no node can hold the model, any two hold all of
its experts.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster
from tests.lab.conftest import tracked_cluster
from tests.lab.experts.children import Child, Children, brain_of, children
from tests.lab.experts.shards import (
    lay_down_texts,
    picture,
    put_right,
    texts,
    wait_shards,
)
from tests.lab.node import LabError, Node, wait

Measured = Callable[..., None]
# With all that others do on the machine meanwhile. Measured: 60 s for counting, 40 s for the rest.
FIRST_S = 300.0
COUNTS = "llama-imatrix"


@dataclass(frozen=True, slots=True)
class Birth:
    """The mesh, from nothing to the first answer from shards.

    :ivar counter: who counted the experts when its meshd was killed; ``counted`` all runs of
        llama-imatrix there before that, ``again`` those after it.
    :ivar took_s: from the start of all nodes.
    """

    nodes: Cluster
    watched: Children
    counter: Node
    counted: tuple[Child, ...]
    took_s: float

    @property
    def again(self) -> tuple[Child, ...]:
        return tuple(self.watched.of(self.counter, COUNTS)[len(self.counted) :])


@pytest.fixture(scope="package")
def birth(lowerdir: str, scratch: Path) -> Iterator[Birth]:
    with tracked_cluster(["ada", "bob", "cleo"], lowerdir, scratch) as nodes:
        lay_down_texts(nodes)
        began_at = time.monotonic()
        with children(nodes.nodes) as watched:
            nodes.start(texts(nodes), settle=False)
            try:
                (counter,) = wait(
                    lambda: [one for one in nodes.nodes if watched.of(one, COUNTS)],
                    FIRST_S,
                    "somebody who counts",
                    every_s=0.02,
                )
            except LabError as error:
                raise LabError(f"{error}\n{picture(nodes)}") from None
            brain = brain_of(counter)
            # The second piece is begun when the first is kept, and all four may take two seconds.
            wait(
                lambda: len(watched.of(counter, COUNTS)) > 1,
                FIRST_S,
                "a second piece",
                every_s=0.01,
            )
            os.kill(brain, signal.SIGKILL)
            counted = tuple(watched.of(counter, COUNTS))
            wait(lambda: counted[-1].gone, 10, "the end of meshd's child", every_s=0.02)
            wait_shards(nodes, timeout_s=FIRST_S)
        yield Birth(nodes, watched, counter, counted, time.monotonic() - began_at)


@pytest.fixture
def nodes(birth: Birth) -> Cluster:
    """All well: each serves from its shard."""
    put_right(birth.nodes)
    return birth.nodes
