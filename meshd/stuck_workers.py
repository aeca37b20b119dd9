"""Nodes that all others wait for and that do not get on, so that another one does their work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshd.mesh.record import ShardStage
from meshd.mesh.view import MeshView
from meshd.shard_wants import ShardWant

# Work begins after five minutes at the latest, whatever a node's engines do.
PATIENCE_S = 900.0
# Progress is told in tenths, and a large model's are long on an old processor.
WORKS_S = 4 * 3600.0

_Said = tuple[ShardStage, float] | None


class StuckWorkers:
    """Each node keeps its own account. Who counts is only ever decided by whoever would: that two
    disagree for a while may cost work that is done twice, no more.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[tuple[str, _Said], float]] = {}
        self._passed: dict[str, dict[str, _Said]] = {}

    def look(self, wants: Iterable[ShardWant], view: MeshView, now_s: float) -> None:
        """:param now_s: monotonic."""
        since: dict[str, tuple[tuple[str, _Said], float]] = {}
        passed: dict[str, dict[str, _Said]] = {}
        for want in wants:
            model, node = want.model, want.awaited
            # Who says anything new is waited for again.
            gone_by: dict[str, _Said] = {
                one: said
                for one, said in self._passed.get(model, {}).items()
                if said is not None and _said(view, one, model) == said
            }
            if node in gone_by:
                # They all were; it is the first one's turn again.
                gone_by = {}
            if node:
                said = _said(view, node, model)
                old = self._since.get(model)
                began_s = old[1] if old is not None and old[0] == (node, said) else now_s
                patience_s = PATIENCE_S if _waits(said) else WORKS_S
                if now_s - began_s >= patience_s:
                    gone_by[node] = said
                else:
                    since[model] = ((node, said), began_s)
            if gone_by:
                passed[model] = gone_by
        self._since, self._passed = since, passed

    @property
    def passed(self) -> Mapping[str, frozenset[str]]:
        """By model."""
        return {model: frozenset(nodes) for model, nodes in self._passed.items()}


def _said(view: MeshView, node: str, model: str) -> _Said:
    member = view.member(node)
    shard = member.record.shard(model) if member is not None else None
    return (shard.stage, shard.progress) if shard is not None else None


def _waits(said: _Said) -> bool:
    return said is None or said[0] not in (ShardStage.RANKING, ShardStage.MAKING)
