"""Records: what comes out is what went in, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.mesh.record import (
    RECORD_MAX_BYTES,
    Assignment,
    DeviceRecord,
    DoctorSummary,
    EngineRecord,
    HeldModel,
    Intent,
    Lease,
    LeaseStage,
    MemoryUse,
    ModelLoad,
    NodeRecord,
    Offer,
    Part,
    RttRecord,
    ShardRecord,
    ShardStage,
    Stage,
    Wish,
)
from meshd.mesh.record_codec import BadRecordError, bounded, decode_record, encode_record
from meshd.quality import Fidelity

NODE = "abcdefghijklmnop"

FULL = NodeRecord(
    id=NODE,
    name="gpu box 1 äöü",
    addresses=("[2001:db8::1]:9338", "10.0.0.1:9338"),
    core=True,
    session="s",
    engine=EngineRecord("0.7.0", build=7000, rpc_protocol=(3, 6, 1), backends=("cuda",)),
    devices=(DeviceRecord("ram", "host", 64 << 30, 60 << 30, 50 << 30),),
    held=(HeldModel("f" * 64, "m.gguf", 1 << 30),),
    wishes=(Wish("m", "m.gguf", most=2, nodes=("a", "b")),),
    offers=(Offer("m", "f" * 64, "solo-cpu", 4096, 4, (MemoryUse("ram", 1 << 30),), 12.5),),
    assignments=(Assignment("m", "f" * 64, Stage.LOADING, term=3, progress=0.5),),
    shards=(
        ShardRecord(
            "mix",
            "e" * 16,
            ShardStage.READY,
            12,
            "r" * 16,
            "k" * 24,
            12,
            0.9,
            measured=(Fidelity("prose", 0.96, 1.04, 0.05),),
            logits=True,
            calibration="c" * 16,
            ranked_on="d" * 16,
        ),
    ),
    load=(ModelLoad("m", 1, 2, 30.25),),
    rtt=(RttRecord("other", 0.2, 0.3, 1.0),),
    doctor=DoctorSummary(10, 1, 0, "no swap"),
)


def as_map(record: NodeRecord) -> dict[str, Any]:
    return msgspec.msgpack.decode(encode_record(record))


def test_a_full_record_comes_back_as_it_was() -> None:
    assert decode_record(encode_record(FULL), NODE) == FULL


def test_defaults_are_not_sent() -> None:
    assert as_map(NodeRecord(id=NODE)) == {"id": NODE}


def test_fields_of_a_newer_release_are_passed_over() -> None:
    sent = as_map(FULL) | {"quantum": {"qubits": [1, 2, {"deep": None}]}}
    sent["devices"][0]["temperature"] = 55
    assert decode_record(msgspec.msgpack.encode(sent), NODE) == FULL


def test_a_record_of_somebody_else_is_refused() -> None:
    with pytest.raises(BadRecordError, match="says that it is of"):
        decode_record(encode_record(FULL), "ponmlkjihgfedcba")


SHARD: dict[str, Any] = {"model": "mix", "fingerprint": "f", "stage": "ready"}
PROSE: dict[str, Any] = {"domain": "prose", "top1": 0.9, "perplexity_ratio": 1.1, "kl": 0.1}

BAD: dict[str, dict[str, Any]] = {
    "a wrong type": {"core": "yes"},
    "a number for a text": {"name": 7},
    "not a number": {"load": [{"model": "m", "tokens_s": math.nan}]},
    "infinite": {"load": [{"model": "m", "tokens_s": math.inf}]},
    "negative measure": {"rtt": [{"peer": "p", "min_ms": -1.0, "median_ms": 0.0, "p95_ms": 0.0}]},
    "negative count": {"load": [{"model": "m", "busy": -1}]},
    "beyond 63 bits": {"held": [{"fingerprint": "f", "file": "m", "size_bytes": 2**63}]},
    "progress beyond 1": {
        "assignments": [{"model": "m", "fingerprint": "f", "stage": "loading", "progress": 1.5}]
    },
    "an unknown stage": {"assignments": [{"model": "m", "fingerprint": "f", "stage": "flying"}]},
    "an escape in a name": {"name": "box\x1b[2J"},
    "a line break": {"name": "box\nroot"},
    "a text too long": {"name": "x" * 600},
    "too many": {"addresses": ["a:1"] * 300},
    "the same twice": {"wishes": [{"model": "m", "source": "a"}, {"model": "m", "source": "b"}]},
    "less room than none": {"shards": [SHARD | {"capacity": -1}]},
    "a shard's progress beyond 1": {"shards": [SHARD | {"progress": 1.1}]},
    "more than all choices": {"shards": [SHARD | {"mass": 1.001}]},
    "more than all tokens": {"shards": [SHARD | {"measured": [PROSE | {"top1": 1.1}]}]},
    "an agreement that is no number": {
        "shards": [SHARD | {"measured": [PROSE | {"top1": math.nan}]}]
    },
    "a divergence below 0": {
        "assignments": [SHARD | {"measured": [PROSE | {"kl": -0.1}]}],
    },
    "an offer's loss without end": {
        "offers": [
            {"model": "m", "fingerprint": "f", "strategy": "expert-shard"}
            | {"measured": [PROSE | {"perplexity_ratio": math.inf}]}
        ]
    },
    "two shards of a model": {"shards": [SHARD, SHARD]},
    "no name": {"wishes": [{"model": "", "source": "a"}]},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_values_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRecordError) as caught:
        decode_record(msgspec.msgpack.encode({"id": NODE} | fields), NODE)
    assert "\n" not in str(caught.value)


def test_depth_and_length_are_bounded() -> None:
    deep = b"\x82\xa2id\xb0" + NODE.encode() + b"\xa1z" + b"\x91" * 12_000 + b"\x90"
    with pytest.raises(BadRecordError):
        decode_record(deep, NODE)
    with pytest.raises(BadRecordError, match="too many"):
        decode_record(bytes(RECORD_MAX_BYTES + 1), NODE)


def test_a_node_with_too_much_to_say_publishes_what_matters_most() -> None:
    big = dataclasses.replace(
        FULL,
        name="x" * 1000 + "\x00",
        held=tuple(HeldModel("f" * 64, f"m{n}.gguf", 1 << 30) for n in range(1000)),
        rtt=tuple(RttRecord(f"peer{n}", 1.0, 1.0, 1.0) for n in range(1000)),
    )
    with pytest.raises(BadRecordError):
        encode_record(big)
    cut = bounded(big)
    sent = encode_record(cut)
    assert len(sent) <= RECORD_MAX_BYTES
    assert decode_record(sent, NODE) == cut
    assert (cut.assignments, cut.offers, cut.devices) == (
        FULL.assignments,
        FULL.offers,
        FULL.devices,
    )


def test_what_a_split_stands_on_is_missed_more_than_what_could_be_offered() -> None:
    """Without its intents a split ends."""
    parts = tuple(Part(f"{n:016}", "GPU-0123456789abcdef", 4, 1 << 33) for n in range(15))
    names = [f"model-{n}" for n in range(6)]
    host = dataclasses.replace(
        FULL,
        offers=tuple(Offer(name, "f" * 64, "pipeline", parts=parts) for name in names),
        assignments=tuple(
            Assignment(name, "f" * 64, Stage.READY, parts=parts) for name in names[:2]
        ),
        intents=tuple(Intent(name, 1, "f" * 64, parts) for name in names[:2]),
        leases=(Lease("other", "h" * 16, 3, LeaseStage.READY, 9340),),
        load=tuple(ModelLoad(f"{n:0500}") for n in range(16)),
        wishes=tuple(Wish(f"{n:0500}", "s" * 500) for n in range(8)),
    )
    cut = bounded(host)
    assert cut.offers == ()
    assert (cut.intents, cut.leases) == (host.intents, host.leases)
    assert decode_record(encode_record(cut), NODE) == cut


def test_what_fits_is_not_cut() -> None:
    assert bounded(FULL) == FULL


texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=20)
sizes = st.integers(0, 2**62)
measures = st.floats(0, 1e12)
records = st.builds(
    NodeRecord,
    id=st.just(NODE),
    name=texts,
    addresses=st.lists(texts, max_size=4).map(tuple),
    core=st.booleans(),
    load=st.lists(
        st.builds(ModelLoad, texts, sizes, sizes, measures), max_size=4, unique_by=lambda x: x.model
    ).map(tuple),
    rtt=st.lists(st.builds(RttRecord, texts, measures, measures, measures), max_size=4).map(tuple),
    doctor=st.none() | st.builds(DoctorSummary, sizes, sizes, sizes, texts),
)


@given(records)
@settings(max_examples=200, deadline=None)
def test_any_record_comes_back_as_it_was(record: NodeRecord) -> None:
    assert decode_record(encode_record(record), NODE) == record


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(BadRecordError) as caught:
        decode_record(data, NODE)
    assert "\n" not in str(caught.value)
