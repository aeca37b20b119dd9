"""What the planner predicts of one machine with a GPU, against what was measured there.

An H200 and 16 processors of a virtual machine, llama.cpp 0.7.0 over Vulkan, 2026-11-28: llama-bench
with a mixture of the dimensions of Qwen3-30B-A3B and random weights (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.mesh.record import DeviceRecord
from meshd.models.facts import GgufFacts
from meshd.models.gguf_facts import read_facts
from meshd.planner.layout import RAM
from meshd.planner.pace import Pace, device_paces, measured_paces, pace_of, predict_solo
from meshd.planner.plan import Layout
from tools.bench_gpu.models import known
from tools.memory_table import sparse

# As `meshd bench` measured them.
PACES = {"gpu": Pace(1.1e12, 13e12), RAM: Pace(49e9, 1.4e12, plain_bytes_s=52e9)}

MEASURED = (
    (Layout(("gpu",), (49,)), 214.8),
    (Layout(("gpu",), (49,), 12), 59.2),
    (Layout(("gpu",), (49,), 24), 36.5),
    (Layout(("gpu",), (49,), 36), 30.9),
    (Layout(("gpu",), (49,), 48), 26.1),
    (Layout(("gpu",), (24,)), 32.0),
    (Layout(), 24.1),
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> GgufFacts:
    return read_facts(sparse.write(known("qwen3-30b-a3b"), tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize(("layout", "tokens_s"), MEASURED)
def test_predictions_are_near(mixture: GgufFacts, layout: Layout, tokens_s: float) -> None:
    assert tokens_s / predict_solo(mixture, layout, 64, PACES) == pytest.approx(1, abs=0.18)


def test_the_order_is_that_of_the_measurements(mixture: GgufFacts) -> None:
    """But for two that were 4 % apart."""
    near = MEASURED[5]
    ordered = [one for one in MEASURED if one is not near]
    predicted = [predict_solo(mixture, layout, 64, PACES) for layout, _ in ordered]
    assert predicted == sorted(predicted, reverse=True)


def test_beside_a_gpu_weights_are_read_as_they_lie(mixture: GgufFacts) -> None:
    slow = {**PACES, RAM: replace(PACES[RAM], plain_bytes_s=26e9)}
    aside = Layout(("gpu",), (49,), 48)
    assert predict_solo(mixture, aside, 64, slow) < predict_solo(mixture, aside, 64, PACES)
    alone = [predict_solo(mixture, Layout(), 64, one) for one in (PACES, slow)]
    assert alone[0] == alone[1]


def test_both_figures_come_from_records_and_from_measurements() -> None:
    record = DeviceRecord(
        RAM, "", 1, 1, 1, bandwidth_bytes_s=14, flops_s=1, lent_bandwidth_bytes_s=9
    )
    assert pace_of(record, gpu=False).beside_gpu.bytes_s == 9
    assert pace_of(replace(record, lent_bandwidth_bytes_s=0), gpu=False).beside_gpu.bytes_s == 14
    assert device_paces(None) == measured_paces(()) == {}
