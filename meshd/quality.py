"""What a model may lose where it is served from a part of its experts, and what it was measured to
lose. The words are the configuration's, a request's header's and the records' alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Fidelity:
    """A shard beside its whole model, on one kind of text, as llama-perplexity measures it.

    :ivar top1: share of tokens for which both find the same one likeliest, 0 to 1.
    :ivar perplexity_ratio: the shard's perplexity by the model's; 1 is none the worse.
    :ivar kl: mean Kullback-Leibler divergence of its distribution from the model's, in nats.
    """

    domain: str
    top1: float
    perplexity_ratio: float
    kl: float


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds that hold for every kind of text that was measured. With none at all the model has to
    be served exactly.
    """

    min_top1: float | None = None
    max_perplexity_ratio: float | None = None
    max_kl: float | None = None

    @property
    def exact(self) -> bool:
        return self == EXACT

    def __str__(self) -> str:
        """``exact``, or the bounds as `parse` reads them."""
        said = ((one.name, getattr(self, one.name)) for one in fields(self))
        # All digits, so that whoever reads it has the same bounds.
        bounds = (f"{name}={bound!r}" for name, bound in said if bound is not None)
        return ", ".join(one.removesuffix(".0") for one in bounds) or _EXACT


_EXACT = "exact"
EXACT = Budget()


def parse(text: str) -> Budget:
    """``exact``, or one or more bounds: ``min_top1=0.95, max_perplexity_ratio=1.05``.

    :raises ValueError: anything else; the message is one sentence.
    """
    if text.strip() == _EXACT:
        return EXACT
    bounds: dict[str, float] = {}
    names = [one.name for one in fields(Budget)]
    for piece in text.split(","):
        name, _, number = (part.strip() for part in piece.partition("="))
        if name not in names or name in bounds:
            raise ValueError(f"quality is exact, or one or more of {', '.join(names)} once each")
        try:
            bounds[name] = float(number)
        except ValueError:
            raise ValueError(f"quality: {name} needs a number") from None
    return checked(Budget(**bounds))


def quality_of(text: str) -> Budget:
    """What another node, maybe of another version, asks for; what cannot be read is exact."""
    try:
        return parse(text)
    except ValueError:
        return EXACT


def strictest(one: Budget, other: Budget) -> Budget:
    """What keeps both; exact where either is."""
    if one.exact or other.exact:
        return EXACT
    tops = [bound for bound in (one.min_top1, other.min_top1) if bound is not None]
    ratios = (one.max_perplexity_ratio, other.max_perplexity_ratio)
    kls = (one.max_kl, other.max_kl)
    return Budget(
        max(tops, default=None),
        min((bound for bound in ratios if bound is not None), default=None),
        min((bound for bound in kls if bound is not None), default=None),
    )


def checked(budget: Budget) -> Budget:
    """:raises ValueError: a bound that nothing, or everything, would keep."""
    for name, least, most in (
        ("min_top1", 0.0, 1.0),
        ("max_perplexity_ratio", 1.0, 100.0),
        ("max_kl", 0.0, 100.0),
    ):
        bound = getattr(budget, name)
        if bound is not None and not (math.isfinite(bound) and least <= bound <= most):
            raise ValueError(f"quality: {name} is {bound:g}, not {least:g} to {most:g}")
    return budget


def shortfalls(budget: Budget, measured: Iterable[Fidelity]) -> tuple[str, ...]:
    """By how much each bound is missed, one phrase each; empty when all of it is kept.

    What was never measured keeps no bound.
    """
    known = tuple(measured)
    if budget.exact:
        return ("only a part of its experts is here",) if known else ()
    if not known:
        return ("its quality was not measured",)
    missed = []
    for one in known:
        if budget.min_top1 is not None and not one.top1 >= budget.min_top1:
            found = rounded_down(one.top1, 3)
            missed.append(f"top-1 agreement on {one.domain} is {found:.3f}, not "
                          f"{budget.min_top1:g}")  # fmt: skip
        most = budget.max_perplexity_ratio
        if most is not None and not one.perplexity_ratio <= most:
            found = rounded_up(one.perplexity_ratio, 3)
            missed.append(f"perplexity on {one.domain} is {found:.3f} times the "
                          f"model's, at most {most:g} may be")  # fmt: skip
        if budget.max_kl is not None and not one.kl <= budget.max_kl:
            missed.append(f"KL divergence on {one.domain} is {rounded_up(one.kl, 3):.3f}, at most "
                          f"{budget.max_kl:g} may be")  # fmt: skip
    return tuple(missed)


def rounded_down(value: float, digits: int) -> float:
    """What misses a least must not look as if it kept it; likewise `rounded_up` and a most."""
    # As it is written: 0.29 is a little less than that in binary, and is no 0.28.
    scaled = round(value * 10.0**digits, 6)
    return math.floor(scaled) / 10.0**digits if math.isfinite(scaled) else value


def rounded_up(value: float, digits: int) -> float:
    scaled = round(value * 10.0**digits, 6)
    return math.ceil(scaled) / 10.0**digits if math.isfinite(scaled) else value


def worst(measured: Iterable[Fidelity]) -> Fidelity | None:
    """The lowest agreement and the highest losses, each over all kinds of text; None of none."""
    known = tuple(measured)
    if not known:
        return None
    return Fidelity(
        "all",
        min(one.top1 for one in known),
        max(one.perplexity_ratio for one in known),
        max(one.kl for one in known),
    )
