"""What one end knows of one peer beside what its open connection says; status is made of both."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshd.guard.allowance import Pace, allowance_s
from meshd.guard.link import Link
from meshd.guard.status import PeerStatus


@dataclass(slots=True)
class Tally:
    """:ivar link: the connection that is open just now.

    :ivar pace: learned from those that are over.
    """

    node: str
    endpoint: str
    pace: Pace
    calls: int = 0
    call_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    silences: int = 0
    losses: int = 0
    last_trouble: str = ""
    link: Link | None = field(default=None)

    def begin(self, link: Link) -> None:
        self.link = link

    def end(self) -> None:
        """The connection is over; what it counted is kept."""
        link, self.link = self.link, None
        if link is None:
            return
        self.calls += link.conversation.calls
        self.call_s += link.conversation.call_s
        self.bytes_up += link.bytes_up
        self.bytes_down += link.bytes_down
        self.pace = link.conversation.pace.anew()

    def silence(self, why: str) -> None:
        self.silences += 1
        self.last_trouble = why

    def loss(self, why: str) -> None:
        self.losses += 1
        self.last_trouble = why

    def status(
        self, now_s: float, *, reached: bool, problem: str, protocol: str, rtt_ms: float = 0.0
    ) -> PeerStatus:
        link = self.link
        talk = link.conversation if link else None
        waiting = link.waiting() if link else None
        busy = talk is not None and waiting is not None and waiting.since_s is not None
        return PeerStatus(
            node=self.node,
            endpoint=self.endpoint,
            reached=reached,
            problem=problem,
            protocol=protocol,
            connections=1 if link else 0,
            rtt_ms=round(rtt_ms, 3),
            calls=self.calls + (talk.calls if talk else 0),
            call_s=self.call_s + (talk.call_s if talk else 0.0),
            bytes_to_member=self.bytes_up + (link.bytes_up if link else 0),
            bytes_to_host=self.bytes_down + (link.bytes_down if link else 0),
            oldest_call_s=talk.oldest_call_s(now_s) if talk else 0.0,
            allowance_s=allowance_s(waiting.work, talk.pace) if busy and talk and waiting else 0.0,
            silences=self.silences,
            losses=self.losses,
            last_trouble=self.last_trouble,
        )
