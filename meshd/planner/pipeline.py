"""How a model could be split with this node as the host. Pure. (In the making.)"""

from __future__ import annotations

from collections.abc import Mapping

from meshd.config.settings import Config, ModelSettings
from meshd.engine.build import EngineBuild
from meshd.mesh.view import MeshView
from meshd.planner.plan import Decision
from meshd.planner.view import NodeView


def pipeline_offer(
    node: NodeView,
    config: Config,
    model: ModelSettings,
    view: MeshView,
    me: str,
    *,
    build: EngineBuild | None,
    excluded: Mapping[str, str],
    solo: Decision,
) -> Decision:
    return solo
