"""How badly the network behaves: figures measured on Zenoh 1.10.2 (anchors/membership.md, 4.2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities are a case each; times are seconds.

    :ivar lease_s: after which an end of a dead QUIC link gives it up (1.5 to 2.2 measured).
    :ivar reopen_s: a client finds its next core, when that one answers; `open_timeout_s` for each
        one that does not.
    :ivar long_reopen: it takes up to `long_reopen_s` instead (flaps of up to 10 s, defect 6).
    :ivar loss: a receiver misses a put. `loss_after_link`: within `settle_s` of a link or a
        session being made (interests not yet declared, defect 5).
    :ivar late: a put is held up by up to `late_s`: overtaken by newer ones.
    :ivar zombie: a core keeps tokens of a core that it lost (defect 7), `zombie_part` of them;
        all cores of a part may only with `zombies_shared`, which nothing but traffic then finds.
    :ivar missed_token: a core does not learn a token when two halves meet (defect 11), for up to
        `missed_token_s`; for ever with a negative one.
    :ivar thin_start: a session that opens learns only a few of the tokens (defect 8).
    :ivar forget: a client that loses its session is told that everybody is gone.
    :ivar silence: an ask gets no answer though all are well.
    """

    lease_s: tuple[float, float] = (1.5, 2.2)
    reopen_s: tuple[float, float] = (0.05, 0.6)
    open_timeout_s: float = 1.5
    long_reopen: float = 0.03
    long_reopen_s: tuple[float, float] = (4.0, 10.0)
    link_s: tuple[float, float] = (0.3, 1.2)
    loss: float = 0.002
    loss_after_link: float = 0.3
    settle_s: float = 2.0
    duplicate: float = 0.01
    late: float = 0.02
    late_s: float = 1.5
    jitter: float = 0.3
    zombie: float = 0.3
    zombie_part: float = 0.5
    zombies_shared: bool = False
    missed_token: float = 0.01
    missed_token_s: float = 60.0
    thin_start: float = 0.02
    forget: float = 0.5
    silence: float = 0.01


PERFECT = Faults(
    long_reopen=0.0,
    loss=0.0,
    loss_after_link=0.0,
    duplicate=0.0,
    late=0.0,
    jitter=0.0,
    zombie=0.0,
    missed_token=0.0,
    thin_start=0.0,
    forget=0.0,
    silence=0.0,
)
"""Delay only."""

LOSSY = Faults(loss=0.05, loss_after_link=0.5, duplicate=0.05, late=0.1, silence=0.05)
"""5 % of everything is lost, on top of the rest."""

LOSSLESS = Faults(loss=0.0, loss_after_link=0.0)
"""Every put arrives, late or twice as ever: nodes that see the same share a placement, where with
losses each of a thousand has a view of its own and works out its own.
"""
