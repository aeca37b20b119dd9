"""What holds for every offer of a split, whoever is in the mesh and whatever the model."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.config.settings import ModelSettings
from meshd.mesh.view import MeshView, Status
from meshd.models.facts import GgufFacts
from meshd.planner.plan import Decision, Strategy
from tests.unit.planner_splits.boxes import ENGINE, GIB, MIB, Box, Card, mesh_of, offered
from tests.unit.worlds import facts as plain

OTHER = replace(ENGINE, build=11000)
NAMES = "abcdefghijkl"


@st.composite
def boxes(draw: st.DrawFn, most: int = 12) -> list[Box]:
    count = draw(st.integers(1, most))
    return [
        Box(
            name,
            ram_gib=draw(st.sampled_from([0.0, 0.3, 2.0, 8.0, 64.0])),
            ram_gb_s=draw(st.sampled_from([0.0, 10.0, 33.3])),
            cards=tuple(
                Card(
                    draw(st.sampled_from([0.0, 1.0, 6.0, 24.0])),
                    draw(st.sampled_from([0.0, 300.0, 900.0])),
                    unified=draw(st.sampled_from([False, False, False, True])),
                )
                for _ in range(draw(st.integers(0, 2)))
            ),
            rtt_ms=draw(st.sampled_from([None, 0.0, 0.3, 5.0, 79.0, 120.0, float("inf")])),
            role=draw(st.sampled_from(["auto", "auto", "serve", "standby", "client"])),
            engine=draw(st.sampled_from([ENGINE, ENGINE, ENGINE, OTHER, None])),
            status=draw(st.sampled_from([Status.ALIVE, Status.ALIVE, Status.SUSPECT])),
            draining=draw(st.sampled_from([False, False, False, True])),
            network_bytes_s=draw(st.sampled_from([0, 10**7, 10**9])),
        )
        for name in NAMES[:count]
    ]


@st.composite
def models(draw: st.DrawFn) -> GgufFacts:
    layers = draw(st.integers(1, 24))
    model = plain(
        layers=layers,
        layer_bytes=draw(st.sampled_from([1, 100, 400, 1500])) * MIB,
        expert_share=draw(st.sampled_from([0.0, 0.0, 0.8])),
    )
    if draw(st.booleans()):
        kinds = (
            model.layers[0],
            replace(model.layers[0], weight_bytes=700 * MIB, sliding=True),
            replace(model.layers[0], key_elements=0, value_elements=0, recurrent_bytes=MIB),
            replace(model.layers[0], prediction=True),
        )
        mixed = tuple(draw(st.sampled_from(kinds[:3])) for _ in range(layers))
        model = replace(model, layers=(*mixed, kinds[3]), sliding_window=512)
    return replace(model, tied_embeddings=draw(st.booleans()))


asked = st.builds(
    lambda context, slots: ModelSettings("m", "m.gguf", context=context, slots=slots),
    st.sampled_from(["auto", 512, 8192]),
    st.sampled_from(["auto", 1, 4]),
)
# What an excluded member may be called.
failures = st.dictionaries(st.sampled_from([f"id-{name}" for name in NAMES]), st.just("failed"))


def answer(
    them: list[Box], model: GgufFacts, settings: ModelSettings, failed: dict[str, str]
) -> tuple[MeshView, Decision]:
    view = mesh_of(*them)
    return view, offered(them[0], view, model, settings, excluded=failed)


@settings(deadline=None)
@given(boxes(), models(), asked, failures)
def test_a_split_is_whole_and_in_order_and_everybody_in_it_may_be(
    them: list[Box], model: GgufFacts, settings: ModelSettings, failed: dict[str, str]
) -> None:
    _, decision = answer(them, model, settings, failed)
    assert len(decision.considered) <= 40
    if decision.strategy is not Strategy.PIPELINE:
        assert not decision.parts
        return
    host = them[0].id
    known = {box.id: box for box in them}
    assert sum(part.layers for part in decision.parts) == len(model.layers)
    assert all(part.layers > 0 for part in decision.parts)
    places = [(part.node, part.device) for part in decision.parts]
    assert len(set(places)) == len(places)
    order = [1 if node != host else 0 if device == "ram" else 2 for node, device in places]
    assert order == sorted(order)
    members = [node for node, _ in places if node != host]
    runs = [node for node, before in zip(members, [None, *members], strict=False) if node != before]
    assert len(runs) == len(set(runs)) >= 1, "a node's parts stand together"
    for node in runs:
        box = known[node]
        assert node not in failed
        assert box.role != "client"
        assert box.engine == ENGINE
        assert box.status is Status.ALIVE
        assert not box.draining
    own = [part for part in decision.parts if part.node == host and part.device != "ram"]
    counts = [part.layers for part in own]
    if counts:
        counts[-1] += 1
    assert decision.layout.gpus == tuple(part.device for part in own)
    assert decision.layout.gpu_layers == tuple(counts)
    assert decision.tokens_s > 0
    assert decision.ubatch_s > 0


@settings(deadline=None)
@given(boxes(), models(), asked)
def test_no_device_is_promised_more_than_it_has(
    them: list[Box], model: GgufFacts, settings: ModelSettings
) -> None:
    _, decision = answer(them, model, settings, {})
    if decision.strategy is not Strategy.PIPELINE:
        return
    used: dict[tuple[str, str], int] = {}
    own = [(them[0].id, use.device, use.total_bytes) for use in decision.memory]
    lent = [
        (part.node, part.device, part.size_bytes)
        for part in decision.parts
        if part.node != them[0].id
    ]
    for node, device, size_bytes in (*own, *lent):
        box = next(box for box in them if box.id == node)
        card = None if device == "ram" else box.cards[int(device.removeprefix("GPU-")) - 1]
        pool = "ram" if card is None or card.unified else device
        used[node, pool] = used.get((node, pool), 0) + size_bytes
    for (node, pool), size_bytes in used.items():
        box = next(box for box in them if box.id == node)
        gib = box.ram_gib if pool == "ram" else box.cards[int(pool.removeprefix("GPU-")) - 1].gib
        assert size_bytes <= gib * GIB


@settings(deadline=None, max_examples=60)
@given(boxes(), models(), asked, st.randoms())
def test_the_order_of_records_and_of_what_is_in_them_changes_nothing(
    them: list[Box], model: GgufFacts, settings: ModelSettings, rng: random.Random
) -> None:
    view, decision = answer(them, model, settings, {})
    members = []
    for member in rng.sample(view.members, len(view.members)):
        record = member.record
        devices, rtt = list(record.devices), list(record.rtt)
        rng.shuffle(devices)
        rng.shuffle(rtt)
        record = replace(record, devices=tuple(devices), rtt=tuple(rtt))
        members.append(replace(member, record=record))
    shuffled = replace(view, members=tuple(members))
    assert offered(them[0], shuffled, model, settings) == decision


@settings(deadline=None, max_examples=40)
@given(boxes(), models(), asked)
def test_asked_again_it_says_the_same(
    them: list[Box], model: GgufFacts, settings: ModelSettings
) -> None:
    _, first = answer(them, model, settings, {})
    # Another model in between, so that nothing can be remembered of the first.
    answer(them, plain(layers=3), settings, {})
    _, second = answer(them, model, settings, {})
    assert first == second
