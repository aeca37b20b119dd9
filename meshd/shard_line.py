"""One node's expert shard of a model as people see it in status, plan and console. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshd.mesh.record import ShardStage
from meshd.quality import Fidelity, rounded_down, rounded_up, worst

_STAGES = {
    ShardStage.WANTED: "waits",
    ShardStage.RANKING: "experts are being counted",
    ShardStage.MAKING: "being made",
    ShardStage.READY: "ready",
    ShardStage.REFUSED: "refused",
}
_UNDER_WAY = (ShardStage.RANKING, ShardStage.MAKING)


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A node's shard of a model, or how far it is with one.

    :ivar node: its name. :ivar me: it is the node that answers.
    :ivar stage: `mesh.record.ShardStage`; ``progress`` of it, 0 to 1.
    :ivar serves: the model is served from it there.
    :ivar experts: kept in each layer, 0 where not known; of ``experts_all``, 0 likewise.
    :ivar mass: of the choices on the calibration text, 0 where not known.
    :ivar measured: what it loses, by kind of text; empty before that is known.
    :ivar detail: what it waits for, or why it is refused.
    """

    model: str
    node: str
    me: bool
    stage: str
    serves: bool = False
    experts: int = 0
    experts_all: int = 0
    mass: float = 0.0
    measured: tuple[Fidelity, ...] = ()
    progress: float = 0.0
    detail: str = ""


def quality(measured: Iterable[Fidelity]) -> str:
    """``top-1 0.962 prose, 0.971 code; perplexity x1.03``; "" of nothing.

    Of a kind of text that is there twice the worse counts. Rounded to the worse side, so that what
    misses a bound never looks as if it kept it.
    """
    agreement: dict[str, float] = {}
    known = tuple(measured)
    for one in known:
        agreement[one.domain] = min(one.top1, agreement.get(one.domain, one.top1))
    overall = worst(known)
    if overall is None:
        return ""
    kinds = ", ".join(f"{rounded_down(top1, 3):.3f} {kind}" for kind, top1 in agreement.items())
    return f"top-1 {kinds}; perplexity x{rounded_up(overall.perplexity_ratio, 2):.2f}"


def shape(one: ShardStatus) -> str:
    """``12 of 16 experts, 83 % of routing; top-1 ...``: as much of it as is known."""
    said = (kept(one.experts, one.experts_all, one.mass), quality(one.measured))
    return "; ".join(filter(None, said))


def kept(experts: int, experts_all: int, mass: float) -> str:
    """As in `ShardStatus`."""
    said = []
    if experts:
        of_all = f" of {experts_all}" if experts_all else ""
        said.append(f"{experts}{of_all} experts")
    if mass:
        said.append(f"{rounded_down(mass, 2) * 100:.0f} % of routing")
    return ", ".join(said)


def progress(one: ShardStatus) -> str:
    """How far it is: ``being made 40 %, 12 of 16 experts: DETAIL``."""
    stage = ShardStage(one.stage)
    percent = f" {one.progress * 100:.0f} %" if one.progress and stage in _UNDER_WAY else ""
    said = ", ".join(filter(None, (f"{_STAGES[stage]}{percent}", shape(one))))
    return f"{said}: {one.detail}" if one.detail else said
