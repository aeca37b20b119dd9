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
    own_shard,
    picture,
    put_right,
    texts,
    wait_shards,
)
from tests.lab.node import LabError, Node, wait

Measured = Callable[..., None]
# With all that others do on the machine meanwhile. Measured: 60 s for counting, 40 s for the rest.
FIRST_S = 300.0
# Of the pieces that a text is counted in, some are done by then, and some are not.
KILLED_AT = 0.4


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
        return tuple(self.watched.of(self.counter, "llama-imatrix")[len(self.counted) :])


@pytest.fixture(scope="package")
def birth(lowerdir: str, scratch: Path) -> Iterator[Birth]:
    with tracked_cluster(["ada", "bob", "cleo"], lowerdir, scratch) as nodes:
        lay_down_texts(nodes)
        began_at = time.monotonic()
        with children(nodes.nodes) as watched:
            nodes.start(texts(nodes), settle=False)
            try:
                (counter,) = wait(lambda: _counting(nodes), FIRST_S, "somebody who counts")
            except LabError as error:
                raise LabError(f"{error}\n{picture(nodes)}") from None
            counted = tuple(watched.of(counter, "llama-imatrix"))
            os.kill(brain_of(counter), signal.SIGKILL)
            wait(lambda: counted[-1].gone, 10, "the end of meshd's child", every_s=0.02)
            wait_shards(nodes, timeout_s=FIRST_S)
        yield Birth(nodes, watched, counter, counted, time.monotonic() - began_at)


def _counting(nodes: Cluster) -> list[Node]:
    found = [(node, own_shard(node)) for node in nodes.nodes]
    return [
        node
        for node, one in found
        if one.get("stage") == "ranking" and one["progress"] >= KILLED_AT
    ]


@pytest.fixture
def nodes(birth: Birth) -> Cluster:
    """All well: each serves from its shard."""
    put_right(birth.nodes)
    return birth.nodes
