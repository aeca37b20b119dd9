"""How far a llama-server is, by its own words: `/metrics` and `/slots`. Pure.

Both are answered at once while it computes (0.7.0), so they tell of batches that are under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from meshd.progress import Counts


@dataclass(frozen=True, slots=True)
class _Next:
    n_decoded: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """:ivar n_prompt_tokens: in its context, with those of the batch that is being computed;
    ``n_prompt_tokens_processed`` those that are done.
    """

    is_processing: bool = False
    n_prompt_tokens: int = 0
    n_prompt_tokens_processed: int = 0
    next_token: tuple[_Next, ...] = field(default=())

    @property
    def generated(self) -> int:
        return self.next_token[0].n_decoded if self.next_token else 0


def totals(metrics: str) -> Counts | None:
    """From the text of `/metrics`; None where it is another engine's, or of one that does not say.

    :raises ValueError: not in Prometheus's format.
    """
    found = {
        sample.name.removeprefix("llamacpp:"): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name.startswith("llamacpp:")
    }
    busy, decodes = found.get("requests_processing"), found.get("n_decode_total")
    if busy is None or decodes is None:
        return None
    return Counts(int(busy), int(decodes), generated=int(found.get("tokens_predicted_total", 0)))


def slots_of(data: bytes) -> tuple[Slot, ...]:
    """From the body of `/slots`. :raises ValueError: not what it should be."""
    try:
        return msgspec.json.decode(data, type=tuple[Slot, ...])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def with_slots(counts: Counts, slots: Sequence[Slot]) -> Counts:
    """The totals, and how far the requests are that make them up."""
    working = [slot for slot in slots if slot.is_processing]
    return Counts(
        busy=counts.busy,
        decodes=counts.decodes,
        prompt_tokens=sum(slot.n_prompt_tokens_processed for slot in working),
        generated=counts.generated + sum(slot.generated for slot in working),
        reading=sum(not slot.generated for slot in working),
        depth=max((slot.n_prompt_tokens + slot.generated for slot in working), default=0),
    )
