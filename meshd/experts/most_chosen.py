"""What one node alone keeps of a mixture's experts. Pure."""

from __future__ import annotations

from meshd.experts.ranking import Ranking, Selection


def most_chosen(ranking: Ranking, experts: int, groups: int = 0) -> Selection:
    """Of each layer so many, those that were chosen most often, equally many of each group.

    :raises ValueError: the groups cannot have equally many of them, or a layer has not so many.
    """
    step = groups or 1
    if experts % step or any(counts and len(counts) < experts for counts in ranking.counts):
        raise ValueError(f"{experts} experts of each layer, in {step} groups")
    return tuple(_most(order, experts // step, step) for order in ranking.orders)


def _most(order: tuple[int, ...], each: int, step: int) -> tuple[int, ...]:
    size = len(order) // step
    groups = ([one for one in order if one // size == group] for group in range(step))
    return tuple(sorted(one for group in groups for one in group[:each])) if order else ()
