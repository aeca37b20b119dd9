"""Plans for recorded meshes. `UPDATE_GOLDEN=1 pytest ...` rewrites the texts; read the diff.

A recording has the records of all nodes as they publish them, which models there are (dimensions
of `tools.memory_table.models`), and the ids of the nodes that hold the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from meshd.config.settings import Config, ModelSettings, NodeSettings, Reserve
from meshd.mesh.record import NodeRecord
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.models.facts import GgufFacts
from meshd.models.gguf_facts import read_facts
from meshd.node.inventory import Cpu, Gpu, Hardware, Ram, Vendor
from meshd.own_record import offer_record
from meshd.planner.pipeline import pipeline_offer
from meshd.planner.place import offer
from meshd.planner.plan import Decision, Strategy
from meshd.planner.replicas import place_replicas
from meshd.planner.view import Candidate, NodeView
from meshd.report import decision_lines, size
from tests.unit.planner_splits.boxes import BUILD
from tools.memory_table.models import MODELS
from tools.memory_table.sparse import Q, write

_GOLDEN = Path(__file__).parent.parent / "golden" / "meshes"
RECORDINGS = sorted(path.stem for path in _GOLDEN.glob("*.json"))


@dataclass(frozen=True, slots=True)
class Model:
    """:ivar shape: of `MODELS`. :ivar holders: ids. :ivar quantisation: a GGML type's name."""

    name: str
    shape: str
    holders: tuple[str, ...]
    quantisation: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    """:ivar excluded: nodes that failed as members, and why. :ivar suspect: ids."""

    about: str
    models: tuple[Model, ...]
    records: tuple[NodeRecord, ...]
    excluded: dict[str, str] = field(default_factory=dict)
    suspect: tuple[str, ...] = ()


@cache
def facts_of(shape: str, quantisation: str) -> GgufFacts:
    found = next(one for one in MODELS if one.name == shape)
    if quantisation:
        found = replace(found, quantisation=Q[quantisation])
    with TemporaryDirectory() as folder:
        return replace(read_facts(write(found, Path(folder))), files=(f"/models/{shape}.gguf",))


def node_of(record: NodeRecord, models: tuple[Model, ...]) -> NodeView:
    ram = next(device for device in record.devices if device.id == "ram")
    gpus = tuple(
        Gpu(
            device.id,
            Vendor.NVIDIA,
            device.name,
            device.id,
            device.total_bytes,
            device.free_bytes if device.unified else device.plannable_bytes,
            device.unified,
        )
        for device in record.devices
        if device.id != "ram"
    )
    memory = Ram(ram.total_bytes, ram.plannable_bytes)
    hardware = Hardware(record.name, Cpu(ram.name, "x86_64", 8, 16), memory, gpus)
    candidates = tuple(
        Candidate(
            model.name,
            facts_of(model.shape, model.quantisation),
            fingerprint=f"content-{model.name}",
        )
        for model in models
        if record.id in model.holders
    )
    return NodeView(record.id, hardware, gpus, candidates=candidates, name=record.name)


def decisions_of(recording: Recording, view: MeshView) -> Iterator[tuple[NodeView, Decision]]:
    for member in view.members:
        node = node_of(member.record, recording.models)
        for model in recording.models:
            if member.id not in model.holders:
                continue
            settings = ModelSettings(model.name, f"{model.name}.gguf")
            config = Config(node=NodeSettings(reserve=Reserve(0, 0)), models=(settings,))
            yield (
                node,
                pipeline_offer(
                    node,
                    config,
                    settings,
                    replace(view, me=member.id),
                    member.id,
                    build=BUILD,
                    excluded=recording.excluded,
                    solo=offer(node, config, settings),
                ),
            )


def text_of(recording: Recording) -> str:
    view = view_of(recording, recording.records)
    alone = with_offers(recording, view)
    names = {record.id: record.name for record in recording.records}
    lines = [recording.about]
    for node, decision in decisions_of(recording, alone):
        lines += ["", f"on {node.name}", *decision_lines(decision)]
        for part in decision.parts:
            where = f"{names[part.node]} {part.device}"
            lines.append(f"    {where}: {part.layers} layers, {size(part.size_bytes)}")
        if decision.strategy is Strategy.PIPELINE:
            lines.append(f"    a micro-batch: {decision.ubatch_s:.3g} s on the slowest member")
        for one in decision.considered:
            who = ", ".join(names[node] for node in one.nodes)
            lines.append(f"    not {who}: {one.reason.text} [{one.reason.code}]")
    for placement in place_replicas(with_offers(recording, alone), {}).placements:
        hosts = ", ".join(names[replica.node] for replica in placement.replicas) or "nobody"
        lines += ["", f"{placement.model} on {hosts}"]
        lines += [f"    {reason.text} [{reason.code}]" for reason in placement.blockers]
    return "\n".join(lines) + "\n"


def view_of(recording: Recording, records: tuple[NodeRecord, ...]) -> MeshView:
    members = tuple(
        MemberView(
            record.id,
            1,
            Status.SUSPECT if record.id in recording.suspect else Status.ALIVE,
            record,
        )
        for record in sorted(records, key=lambda record: record.id)
    )
    return MeshView(members[0].id, members)


def with_offers(recording: Recording, view: MeshView) -> MeshView:
    """The view when every node has said what it makes of what the others said."""
    offers: dict[str, list[object]] = {}
    for node, decision in decisions_of(recording, view):
        candidate = node.candidate(decision.model)
        offers.setdefault(node.id, []).append(offer_record(decision, candidate, node))
    records = tuple(
        replace(member.record, offers=tuple(offers.get(member.id, ())))  # type: ignore[arg-type]
        for member in view.members
    )
    return view_of(recording, records)


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_plan_of_a_recorded_mesh(name: str) -> None:
    data = (_GOLDEN / f"{name}.json").read_bytes()
    text = text_of(msgspec.json.decode(data, type=Recording))
    path = _GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


def test_there_are_recordings() -> None:
    assert len(RECORDINGS) >= 6
