"""From a pass with shards in the mesh to status and report, through the real functions."""

from __future__ import annotations

from dataclasses import replace

from meshd.config.findings import SourceFile
from meshd.config.layers import parse_layers
from meshd.gateway.routes import ModelState
from meshd.instance import instance_name
from meshd.mesh.record import NodeRecord, Offer, ShardRecord, ShardStage, Wish
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.mesh_share import Share
from meshd.pipeline import Proposal
from meshd.planner.plan import Decision, Plan, ShardUse, Strategy
from meshd.planner.replicas import place_replicas
from meshd.quality import Fidelity
from meshd.report import lines
from meshd.said import node_status, report
from meshd.units.spec import EngineKind, EngineState, EngineStatus
from tests.unit.worlds import facts, node

LOST = (Fidelity("prose", 0.96, 1.02, 0.02),)
USE = ShardUse("k1", "/s/k1.gguf", 12, 16, 0.83, LOST)
TEXT = "models: [{name: moe, source: moe.gguf, quality: {min_top1: 0.95}}]"
LOADED = parse_layers([SourceFile("mesh.yaml", TEXT)])


def proposal(*decisions: Decision, share: Share | None = None) -> Proposal:
    engines = tuple(
        EngineStatus(EngineKind.LLAMA, instance_name(one.model), EngineState.RUNNING, "", 7)
        for one in decisions
    )
    mixture = facts(layers=4, expert_share=0.9)
    here = replace(node(models={"moe": mixture}), id="a", name="box-a")
    return Proposal(here, Plan(decisions), (), (), engines, (), share=share)


def shared() -> Share:
    wish = Wish("moe", "moe.gguf", quality="min_top1=0.95")
    refused = ShardRecord(
        "moe", "fp", ShardStage.REFUSED, 8, "r", "k2", 8, 0.6,
        measured=(Fidelity("prose", 0.91, 1.2, 0.2),),
    )  # fmt: skip
    makes = ShardRecord("moe", "fp", ShardStage.MAKING, 12, "r", "k1", 12, 0.8, 0.5, "writes it")
    offer = Offer("moe", "fp", Strategy.EXPERT_SHARD, 4096, 2, tokens_s=30.0, measured=LOST)
    records = (
        NodeRecord("a", name="box-a", wishes=(wish,), shards=(refused,)),
        NodeRecord("b", name="box-b", wishes=(wish,), shards=(makes,)),
        NodeRecord("c", name="box-c", wishes=(wish,), offers=(offer,)),
    )
    members = tuple(MemberView(one.id, 1, Status.ALIVE, one) for one in records)
    view = MeshView("a", members, 1)
    return Share(LOADED.config, records[0], view, place_replicas(view, {}))


def test_a_node_that_is_alone_and_serves_a_shard() -> None:
    served = Decision("moe", Strategy.EXPERT_SHARD, "a", 4096, 2, shard=USE)
    found = node_status(
        LOADED, proposal(served), lambda unit, pid: True, degraded=(), generation=1,
        trial_ends_s=None,
    )  # fmt: skip
    (model,) = found.models
    assert model.state is ModelState.READY
    assert model.shard is not None
    assert (model.shard.node, model.shard.experts, model.shard.measured) == ("box-a", 12, LOST)


def test_what_the_mesh_has_of_shards_is_in_status_and_report() -> None:
    seen = proposal(share=shared())
    found = node_status(
        LOADED, seen, lambda unit, pid: False, degraded=(), generation=1, trial_ends_s=None
    )
    (model,) = found.models
    mine, other = model.shards
    assert (mine.me, mine.stage, mine.experts, mine.experts_all) == (True, "refused", 8, 16)
    assert mine.detail == "top-1 agreement on prose is 0.910, not 0.95"
    assert (other.node, other.stage, other.progress) == ("box-b", "making", 0.5)
    told = "\n".join(lines(report(seen, LOADED), explain=True))
    assert "box-c  30        top-1 0.960 prose; perplexity x1.02" in told
    assert "being made 50 %, 12 experts, 80 % of routing: writes it" in told
    assert "top-1 0.910 prose; perplexity x1.20" in told
