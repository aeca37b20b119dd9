"""The way between host and member is cut, wholly or in one direction, and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.lab import network
from tests.lab.cluster import Cluster
from tests.lab.node import wait
from tests.lab.splits.split import Split, ended_well, gone, served_again, wait_split
from tests.lab.splits.test_split_deaths import MARGIN_S, NOTICED_S, running

Measured = Callable[..., None]


@pytest.mark.parametrize("way", ["both", "to the host", "to the member"])
def test_a_link_that_is_cut_is_noticed_and_one_that_is_mended_used_again(
    nodes: Cluster, split: Split, said: str, measured: Measured, way: str
) -> None:
    host, member = split.host, split.member
    stream = running(split)
    blow_at = time.monotonic()
    if way != "to the member":
        network.drop_incoming(host, [member])
    if way != "to the host":
        network.drop_incoming(member, [host])
    wait(lambda: gone(host, split.pids[0]), 30, "the end of the engine that waits", every_s=0.02)
    noticed_s = time.monotonic() - blow_at
    measured("from the cut to the end of the host's engine", noticed_s)
    answer, again_s = served_again(split.spare, blow_at)
    measured("from the cut to the next answer", again_s)
    assert answer.good, str(answer)
    assert ended_well(stream.result(), said), str(stream.result())
    healed_at = time.monotonic()
    for node in nodes.nodes:
        network.drop_nothing(node)
    wait(nodes.agreed, 60, "views that are equal again")
    wait_split(nodes)
    measured("from the mending to one split that all agree on", time.monotonic() - healed_at)
    assert noticed_s <= NOTICED_S + MARGIN_S
