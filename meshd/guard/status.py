"""What a guard says of itself on its Unix socket: `GET /status`, JSON of `GuardStatus`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class End(StrEnum):
    """MEMBER: in front of an rpc-server. HOST: where a llama-server connects to."""

    MEMBER = "member"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One way between a llama-server and an rpc-server, as this end sees it.

    :ivar node: id of the node at the other end.
    :ivar endpoint: ``host:port`` on loopback: of the local end for ``--rpc``, or of rpc-server.
    :ivar reached: HOST: the member's guard answers, and its rpc-server said the protocol that is
        expected. MEMBER: the rpc-server answers.
    :ivar problem: one sentence why not, "" when reached.
    :ivar protocol: the triple that rpc-server announced, "" before.
    :ivar connections: open ones that carry RPC.
    :ivar rtt_ms: between the guards, smoothed; 0 when not known.
    :ivar calls: that were answered; ``call_s`` is the sum of their times.
    :ivar oldest_call_s: age of the oldest call without an answer, 0 without one.
    :ivar allowance_s: a call that is older is taken for lost.
    :ivar silences: how often this end hung up because a call grew too old or the other guard fell
        silent; ``losses``: how often the other end went away under open connections.
    :ivar last_trouble: of either, in words.
    """

    node: str
    endpoint: str
    reached: bool = False
    problem: str = ""
    protocol: str = ""
    connections: int = 0
    rtt_ms: float = 0.0
    calls: int = 0
    call_s: float = 0.0
    bytes_to_member: int = 0
    bytes_to_host: int = 0
    oldest_call_s: float = 0.0
    allowance_s: float = 0.0
    silences: int = 0
    losses: int = 0
    last_trouble: str = ""


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """:ivar started_s: Unix time. :ivar refused: strangers and rude probes sent away so far.

    :ivar term: of the split that it was started for.
    """

    name: str
    end: End
    started_s: float
    term: int = 0
    peers: tuple[PeerStatus, ...] = ()
    refused: int = 0
