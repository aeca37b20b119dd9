"""Where an exact way serves since a shard loses too much: what is said of it, pass after pass."""

from __future__ import annotations

from meshd.planner.plan import Strategy
from tests.unit.shards.shard_lab import sharing_box
from tests.unit.splits.split_lab import SplitLab


def test_it_is_said_once_however_long_it_lasts() -> None:
    lab = SplitLab(rtt_ms=20.0)
    for name in ("ada", "bob", "cleo"):
        sharing_box(lab, name, loses=lambda _: 0.5)
    lab.until(lambda: bool(lab.hosts("big")), 60)
    lab.run(60)
    (host,) = lab.hosts("big")
    last = lab.boxes[host].last
    assert last is not None
    assert last.share is not None
    made = next(one for one in last.share.could if one.model == "big")
    assert made.strategy is Strategy.PIPELINE
    refused = [one for one in made.considered if one.strategy is Strategy.EXPERT_SHARD]
    assert len(refused) == 1
    assert "0.500, not 0.9" in refused[0].reason.text
