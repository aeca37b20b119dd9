"""How fast a model was predicted to decode, and how fast it does. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

LEAST_TOKENS = 32
"""Of fewer the time is mostly chance."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """By one engine since its start. :ivar seconds: of its slots together."""

    tokens: float
    seconds: float

    @property
    def tokens_s(self) -> float:
        """Of one request at a time; 0 when there is too little to tell."""
        told = self.tokens >= LEAST_TOKENS and self.seconds > 0
        return self.tokens / self.seconds if told else 0.0


def decoded(metrics: str) -> Decoded | None:
    """From llama-server's `/metrics`; None where it is another engine's.

    :raises ValueError: not in Prometheus's format.
    """
    try:
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(metrics)
            for sample in family.samples
        }
    except (ValueError, LookupError) as error:
        raise ValueError(f"not Prometheus's text: {error!r}") from None
    tokens = found.get("llamacpp:tokens_predicted_total")
    seconds = found.get("llamacpp:tokens_predicted_seconds_total")
    return None if tokens is None or seconds is None else Decoded(tokens, seconds)


def error_ratio(predicted_tokens_s: float, actual_tokens_s: float) -> float | None:
    """Above 0 it is faster than predicted; None where either is not known."""
    if predicted_tokens_s <= 0 or actual_tokens_s <= 0:
        return None
    return actual_tokens_s / predicted_tokens_s - 1
