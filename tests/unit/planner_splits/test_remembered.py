"""What is remembered between passes never changes an answer: against planning with nothing kept."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshd.config.settings import ModelSettings
from meshd.mesh.record import Assignment, MemoryUse, Offer, RttRecord, Stage, Wish
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner import eligible, fit, near, pace, pipeline, seen, wishes
from meshd.planner.plan import Strategy
from meshd.planner.replicas import place_replicas
from tests.unit.planner_splits.boxes import ENGINE, GIB, MIB, Box, Card, mesh_of, offered
from tests.unit.worlds import facts

MODEL = facts(layers=12, layer_bytes=900 * MIB)
ASKED = ModelSettings("m", "m.gguf", context=4096, slots=1)
STEPS = 60


def forget() -> None:
    """As in a new process."""
    for kept in (
        near._near, seen._seen, pipeline._answers, eligible._answers, eligible._members,
        eligible._others, wishes._answers, wishes._objects, wishes._kinds, fit._known, pace._reads,
    ):  # fmt: skip
        kept.clear()  # type: ignore[attr-defined]


def step(member: MemberView, rng: random.Random) -> MemberView:
    """Something that can happen to a node's record, or nothing but a new object for the same."""
    record = member.record
    uses = (MemoryUse("GPU-1", rng.randint(1, 6) * GIB),)
    changes = (
        {},
        {"draining": not record.draining},
        {"engine": rng.choice([ENGINE, replace(ENGINE, build=1)])},
        {"role": rng.choice(["auto", "standby", "client"])},
        {"name": f"n{rng.randint(0, 3)}"},
        {"network_bytes_s": rng.choice([0, 10**8])},
        {"wishes": (Wish("m", "m.gguf", nodes=rng.choice([(), ("id-a", "id-b", "id-c")])),)},
        {"rtt": tuple(RttRecord(f"id-{o}", 1, rng.choice([1, 50, 95]), 99) for o in "abcdef")},
        {
            "offers": tuple(
                Offer(name, f"content-{name}", rng.choice(tuple(Strategy)), 4096, 1, uses, 9.0)
                for name in rng.sample(["m", "n", "o"], rng.randint(0, 2))
            )
        },
        {
            "assignments": tuple(
                Assignment(name, f"content-{name}", rng.choice(tuple(Stage)), 1, 4096, 1, uses)
                for name in rng.sample(["n", "o"], rng.randint(0, 2))
            )
        },
        {
            "devices": tuple(
                replace(device, plannable_bytes=rng.randint(1, 12) * GIB)
                for device in record.devices
            )
        },
    )
    status = rng.choice([member.status, member.status, Status.ALIVE, Status.SUSPECT])
    return replace(member, status=status, record=replace(record, **rng.choice(changes)))


@pytest.mark.parametrize("seed", range(12))
def test_a_pass_that_remembers_says_what_one_that_does_not_says(seed: int) -> None:
    rng = random.Random(seed)
    boxes = [Box(name, 4, 30, (Card(6, 400),)) for name in "abcdef"]
    view = mesh_of(*boxes)
    splits = 0
    for _ in range(STEPS):
        members = list(view.members)
        index = rng.randrange(len(members))
        if rng.random() < 0.1 and len(members) > 3:
            members.pop(index)
        elif rng.random() < 0.1:
            members = list(mesh_of(*boxes).members)
        else:
            members[index] = step(members[index], rng)
        view = MeshView(view.me, tuple(members))
        with_memory = (offered(boxes[0], view, MODEL, ASKED), place_replicas(view, {}))
        forget()
        assert (offered(boxes[0], view, MODEL, ASKED), place_replicas(view, {})) == with_memory
        splits += with_memory[0].strategy is Strategy.PIPELINE
        # So that the next pass remembers what this one saw, and more than that.
        offered(boxes[0], view, MODEL, ASKED)
        place_replicas(view, {})
    assert splits
