"""What the brain tells Prometheus, out of a status and what engines and guards said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import Metric

from meshd.brain_metrics import Scraped, families
from meshd.gateway.routes import ModelState
from meshd.plan_error import LEAST_TOKENS, Decoded, decoded, error_ratio
from meshd.quality import Fidelity
from meshd.shard_line import ShardStatus
from meshd.status import DeviceStatus, LentStatus, ModelStatus, NodeStatus

MODEL = ModelStatus(
    name="big",
    state=ModelState.READY,
    strategy="pipeline",
    unit="mesh-llama@big.service",
    pid=7,
    restarts=2,
    context=4096,
    slots=1,
    memory_bytes=5,
    detail="",
    tokens_s=10.0,
)
STATUS = NodeStatus(
    node="box",
    role="auto",
    sentence="",
    degraded=(),
    generation=1,
    engine="",
    gateway=(),
    console="",
    devices=(DeviceStatus("ram", "cpu", 64, 32, 13, 400), DeviceStatus("GPU-1", "gpu", 24, 23)),
    models=(MODEL, replace(MODEL, name="there", strategy="elsewhere", pid=None)),
)
GUARD = """\
# HELP meshd_guard_calls Calls that were answered.
# TYPE meshd_guard_calls counter
meshd_guard_calls_total{peer="abc"} 12.0
# TYPE python_info gauge
python_info 1.0
"""


def told(scraped: Scraped, status: NodeStatus = STATUS) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    family: Metric
    for family in families(status, scraped):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            known = found.setdefault(sample.name, {})
            assert key not in known
            known[key] = sample.value
    return found


def test_predicted_is_held_against_actual() -> None:
    found = told(Scraped({"big": Decoded(120, 10.0)}, {}))
    assert found["meshd_plan_tokens_per_second"] == {("big",): 10.0}
    assert found["meshd_decode_tokens_per_second"] == {("big",): 12.0}
    assert found["meshd_plan_error_ratio"] == {("big",): pytest.approx(0.2)}


@pytest.mark.parametrize(
    "engines",
    [{}, {"big": Decoded(LEAST_TOKENS - 1, 1.0)}, {"big": Decoded(100, 0.0)}],
)
def test_no_error_is_told_before_it_has_served(engines: dict[str, Decoded]) -> None:
    assert "meshd_plan_error_ratio" not in told(Scraped(engines, {}))


def test_nor_of_what_was_not_predicted() -> None:
    status = replace(STATUS, models=(replace(MODEL, tokens_s=0.0),))
    found = told(Scraped({"big": Decoded(120, 10.0)}, {}), status)
    assert "meshd_plan_error_ratio" not in found
    assert found["meshd_decode_tokens_per_second"] == {("big",): 12.0}


def test_models_elsewhere_are_told_there() -> None:
    found = told(Scraped({}, {}))
    assert found["meshd_model_state"] == {("big", "ready"): 1.0}
    assert found["meshd_model_restarts"] == {("big",): 2.0}


def test_progress_is_told_while_something_loads() -> None:
    assert "meshd_model_load_progress" not in told(Scraped({}, {}))
    loading = replace(MODEL, state=ModelState.LOADING, progress=0.4)
    lent = LentStatus("huge", "ada", 16, 5, "seeding", 0.25)
    found = told(Scraped({}, {}), replace(STATUS, models=(loading,), lends=(lent,)))
    assert found["meshd_model_load_progress"] == {("big",): 0.4}
    assert found["meshd_lease_progress"] == {("ada", "huge"): 0.25}


LOST = (Fidelity("prose", 0.96, 1.02, 0.02), Fidelity("code", 0.97, 1.03, 0.03))


def test_the_shard_that_serves_says_what_it_loses_and_the_next_one_how_far_it_is() -> None:
    serves = ShardStatus("big", "box", True, "ready", True, 12, 16, 0.83, LOST)
    makes = ShardStatus("big", "box", True, "making", experts=11, progress=0.4, measured=LOST[:1])
    far = ShardStatus("big", "ada", False, "making", progress=0.9)
    model = replace(MODEL, strategy="expert-shard", shards=(serves, makes, far))
    found = told(Scraped({}, {}), replace(STATUS, models=(model,)))
    assert found["meshd_shard_top1"] == {("prose", "big"): 0.96, ("code", "big"): 0.97}
    assert found["meshd_shard_perplexity_ratio"] == {("prose", "big"): 1.02, ("code", "big"): 1.03}
    assert found["meshd_shard_kl"] == {("prose", "big"): 0.02, ("code", "big"): 0.03}
    assert found["meshd_shard_mass"] == {("big",): 0.83}
    assert found["meshd_shard_progress"] == {("big", "making"): 0.4}


def test_a_model_that_is_served_whole_loses_nothing_though_a_shard_lies_there() -> None:
    lies = ShardStatus("big", "box", True, "ready", False, 12, 16, 0.83, LOST)
    found = told(Scraped({}, {}), replace(STATUS, models=(replace(MODEL, shards=(lies,)),)))
    assert not any(name.startswith("meshd_shard_") for name in found)


def test_what_was_not_measured_is_not_zero() -> None:
    found = told(Scraped({}, {}))
    assert found["meshd_device_bandwidth_bytes_per_second"] == {("ram",): 13.0}
    assert found["meshd_device_memory_bytes"] == {("ram",): 64.0, ("GPU-1",): 24.0}


def test_guards_are_told_apart() -> None:
    found = told(Scraped({}, {"a": GUARD, "b": GUARD.replace("12.0", "3.0"), "c": "", "d": "}{"}))
    assert found["meshd_guard_calls_total"] == {("a", "abc"): 12.0, ("b", "abc"): 3.0}
    assert "python_info" not in found


def test_a_guard_that_says_too_much_is_cut_off() -> None:
    lines = "".join(f'meshd_guard_calls_total{{peer="{n}"}} 1\n' for n in range(6000))
    found = told(Scraped({}, {"a": "# TYPE meshd_guard_calls counter\n" + lines}))
    assert len(found["meshd_guard_calls_total"]) == 4096


def test_the_engine_says_how_much_and_how_long() -> None:
    text = "llamacpp:tokens_predicted_total 64\nllamacpp:tokens_predicted_seconds_total 2.5\n"
    assert decoded(text) == Decoded(64, 2.5)
    assert decoded("vllm:x 1\n") is None
    with pytest.raises(ValueError, match="Prometheus"):
        decoded("{} not this")


def test_faster_than_predicted_is_above_zero() -> None:
    assert error_ratio(10, 8) == pytest.approx(-0.2)
    assert error_ratio(0, 8) is None
    assert error_ratio(10, 0) is None
