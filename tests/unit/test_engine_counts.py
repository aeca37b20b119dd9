"""What llama-server 0.7.0 says of its progress; the samples are its own."""

from __future__ import annotations

import json

import pytest

from meshd.engine_counts import slots_of, totals, with_slots
from meshd.progress import Counts

METRICS = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 0
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 40
# HELP llamacpp:n_decode_total Total number of llama_decode() calls
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 3
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
"""
IDLE = {"id": 0, "n_ctx": 131072, "speculative": False, "is_processing": False}
READS = {
    **IDLE,
    "is_processing": True,
    "id_task": 2,
    "n_prompt_tokens": 8192,
    "n_prompt_tokens_processed": 6144,
    "n_prompt_tokens_cache": 0,
    "next_token": [{"has_next_token": True, "n_remain": 16, "n_decoded": 0}],
}
WRITES = {**READS, "next_token": [{"has_next_token": True, "n_remain": 6, "n_decoded": 10}]}


def slots(*of: dict[str, object]) -> Counts:
    found = totals(METRICS)
    assert found is not None
    return with_slots(found, slots_of(json.dumps(of).encode()))


def test_totals() -> None:
    assert totals(METRICS) == Counts(busy=1, decodes=3, generated=40)


def test_a_slot_that_reads_its_prompt() -> None:
    assert slots(IDLE, READS) == Counts(1, 3, 6144, 40, reading=1, depth=8192)


def test_a_slot_that_writes() -> None:
    assert slots(WRITES, READS) == Counts(1, 3, 2 * 6144, 50, reading=1, depth=8202)


def test_what_does_not_say_it_is_none() -> None:
    assert totals(METRICS.replace("n_decode_total", "other")) is None
    assert totals("") is None


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"is_processing": "yes"}]', b"\xff"])
def test_what_is_no_list_of_slots_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever wording
        slots_of(body)
