"""All that one node knows about its distance to the others: no sockets, no clock of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from meshd.rtt import schedule
from meshd.rtt.endpoint import Endpoint, endpoints, usable_ip, version_of
from meshd.rtt.reading import Reading
from meshd.rtt.schedule import Choice, Turn
from meshd.rtt.window import RttWindow, Sample, Samples, Source, differs, farther

_MAX_IPS_OF_A_NAME = 2
_NO_SAMPLES = Samples()
_MISSED = 2  # losses in a row after which another address is better


@dataclass(frozen=True, slots=True)
class Probe:
    """One packet to be sent now."""

    peer: str
    ip: str


@dataclass(frozen=True, slots=True)
class _Path:
    """What is known of one peer's one IP address."""

    samples: Samples = _NO_SAMPLES
    losses: int = 0


class RttBook:
    """A sans-IO machine: every `now_s` is the same monotonic clock's.

    :param me: our node id; it picks whom we probe among the many that we need not.
    """

    def __init__(self, me: str) -> None:
        self._me = me
        self._peers: Mapping[str, tuple[str, ...]] = {}
        self._needed: frozenset[str] = frozenset()
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._paths: dict[str, dict[str, _Path]] = {}
        self._best: dict[str, str] = {}
        self._turns: dict[str, Turn] = {}
        self._choice = Choice()
        self._known_ips: dict[str, tuple[str, ...]] = {}
        self._can_ping: dict[frozenset[int], Choice] = {}
        self._epoch: int | None = None
        self._last_sent_s: float | None = None
        self._connections: dict[int, Reading] = {}

    def follow(
        self, peers: Mapping[str, tuple[str, ...]], needed: frozenset[str], now_s: float
    ) -> bool:
        """Measure exactly these from now on; what was known of others is forgotten.

        False when that is what it did already.
        """
        if peers == self._peers and needed == self._needed:
            return False
        for gone in self._peers.keys() - peers.keys():
            for known in (self._paths, self._best, self._endpoints, self._known_ips):
                known.pop(gone, None)
        for peer, addresses in peers.items():
            if self._peers.get(peer) != addresses:
                self._endpoints[peer] = endpoints(addresses)
                self._drop_other_ips(peer)
        self._peers, self._needed = dict(peers), needed
        hosts = {one.host for ends in self._endpoints.values() for one in ends}
        self._names = {name: ips for name, ips in self._names.items() if name in hosts}
        self._choose(now_s)
        return True

    def names(self) -> tuple[str, ...]:
        """Host names of the peers that are probed; `resolved` wants their addresses."""
        found = (one for peer in self._choice.peers for one in self._endpoints[peer] if not one.ip)
        return tuple(dict.fromkeys(one.host for one in found))

    def resolved(self, name: str, ips: Iterable[str]) -> None:
        usable: list[str] = []
        for text in ips:
            try:
                ip = usable_ip(text)
            except ValueError:
                continue
            if ip and ip not in usable:
                usable.append(ip)
        self._names[name] = tuple(usable[:_MAX_IPS_OF_A_NAME])
        for peer in self._choice.peers:
            if any(one.host == name for one in self._endpoints[peer]):
                self._drop_other_ips(peer)

    def next_probe(self, now_s: float, versions: frozenset[int]) -> Probe | None:
        """The packet that is due, to be sent at once. :param versions: of IP that can be sent."""
        if self._epoch != schedule.epoch_of(now_s):
            self._choose(now_s)
        if self._last_sent_s is not None and now_s < self._last_sent_s + schedule.BUDGET_S:
            return None
        peer = schedule.next_peer(self._pingable(versions), self._turns, now_s)
        if peer is None:
            return None
        ips = self._ips_of(peer, versions)
        paths = self._paths.get(peer, {})
        best = self._best.get(peer, "")
        index = schedule.address_index(
            self._turns[peer],
            len(ips),
            lambda at: ips[at] in paths and bool(paths[ips[at]].samples.kept),
            ips.index(best) if best in ips else 0,
        )
        self._turns[peer] = schedule.sent(self._turns[peer], now_s)
        self._last_sent_s = now_s
        return Probe(peer, ips[index])

    def due_s(self, versions: frozenset[int]) -> float | None:
        """When `next_probe` will next have one; None while there is nobody to probe."""
        first = min(
            (self._turns[peer].due_s for peer in self._pingable(versions).peers), default=None
        )
        if first is None or self._last_sent_s is None:
            return first
        return max(first, self._last_sent_s + schedule.BUDGET_S)

    def port(self, probe: Probe) -> int:
        """Where the probed peer listens, 0 where that is not known any more."""
        ends = self._endpoints.get(probe.peer, ())
        return next((one.port for one in ends if probe.ip in self._resolved(one)), 0)

    def answered(self, probe: Probe, rtt_ms: float, now_s: float) -> None:
        turn = self._turns.get(probe.peer)
        if turn is None or probe.ip not in self._ips(probe.peer):
            return
        path = self._paths.setdefault(probe.peer, {}).get(probe.ip, _Path())
        expected = path.samples.at(now_s).expects(rtt_ms)
        self._turns[probe.peer] = schedule.answered(turn, now_s, expected=expected)
        self._sample(probe.peer, probe.ip, Sample(now_s, rtt_ms, Source.PING))

    def lost(self, probe: Probe, now_s: float) -> None:
        """No answer, or the packet could not leave. After some in a row nothing is known."""
        turn = self._turns.get(probe.peer)
        if turn is None or probe.ip not in self._ips(probe.peer):
            return
        self._turns[probe.peer] = schedule.lost(turn, now_s)
        paths = self._paths.setdefault(probe.peer, {})
        path = paths.get(probe.ip, _Path())
        path = replace(path, losses=path.losses + 1)
        if path.losses >= schedule.GIVE_UP_AFTER:
            path = replace(path, samples=_NO_SAMPLES)
        paths[probe.ip] = path
        self._judge(probe.peer, now_s)

    def ports(self) -> frozenset[int]:
        """Where peers listen, for `TcpInfo.read`."""
        return frozenset(one.port for ends in self._endpoints.values() for one in ends)

    def connections(self, readings: Iterable[Reading], now_s: float) -> bool:
        """Take the kernel's measurements in. True when there was something new.

        Its minimum looks back five minutes, so it counts when it is a new one: it would otherwise
        outvote a path that became longer. Where pings do not answer, an old one that saw traffic
        since is better than nothing.
        """
        peers: dict[tuple[str, int], list[str]] = {}
        for peer, ends in self._endpoints.items():
            for one in ends:
                for ip in self._resolved(one):
                    peers.setdefault((ip, one.port), []).append(peer)
        news: dict[tuple[str, str], float] = {}
        connections: dict[int, Reading] = {}
        for reading in readings:
            before = self._connections.get(reading.cookie)
            connections[reading.cookie] = reading
            fresh = before is None or before.min_ms != reading.min_ms
            moved = before is None or before.segments != reading.segments
            rtt_ms = reading.rtt_ms if reading.min_ms is None else reading.min_ms
            for peer in peers.get((reading.ip, reading.port), ()):
                path = self._paths.get(peer, {}).get(reading.ip, _Path())
                if fresh or (moved and not path.samples.at(now_s).pinged()):
                    key = (peer, reading.ip)
                    news[key] = min(rtt_ms, news.get(key, rtt_ms))
        self._connections = connections
        for (peer, ip), rtt_ms in news.items():
            self._sample(peer, ip, Sample(now_s, rtt_ms, Source.TCP))
        return bool(news)

    def windows(self, now_s: float) -> dict[str, RttWindow]:
        """By node id: the window of each peer's best address, where anything is known."""
        found: dict[str, RttWindow] = {}
        for peer, ip in self._best.items():
            window = self._paths[peer][ip].samples.window(now_s)
            if window is not None:
                found[peer] = window
        return found

    def best_address(self, peer: str) -> str | None:
        """The ``host:port`` that answers best, None while none has."""
        best = self._best.get(peer)
        ends = self._endpoints.get(peer, ())
        return next((one.address for one in ends if best and best in self._resolved(one)), None)

    def steady_windows(self, now_s: float) -> dict[str, RttWindow]:
        """`windows` without the peer that is only explored: it changes with time alone."""
        found = self.windows(now_s)
        return {peer: one for peer, one in found.items() if peer not in self._choice.explored}

    def _choose(self, now_s: float) -> None:
        self._epoch = schedule.epoch_of(now_s)
        windows = self.windows(now_s)
        settled = {*self._choice.near, *self._choice.needed, *self._choice.others}

        def distance(peer: str) -> tuple[float, str]:
            far = windows[peer].median_ms
            return far if peer in settled else farther(far), peer

        nearest = sorted(windows, key=distance)
        self._choice = schedule.choose(self._me, self._peers, self._needed, nearest, self._epoch)
        self._can_ping.clear()
        old, chosen = self._turns, self._choice.peers
        self._turns = {peer: old.get(peer, Turn(due_s=now_s)) for peer in chosen}
        for peer in self._paths.keys() - self._turns.keys():
            self._forget_pings(peer, now_s)

    def _forget_pings(self, peer: str, now_s: float) -> None:
        """Of a peer that is probed no more; what its connections say stays."""
        paths = self._paths[peer]
        for ip, path in paths.items():
            kept = tuple(one for one in path.samples.kept if one.source is Source.TCP)
            paths[ip] = _Path(Samples(kept))
        self._judge(peer, now_s)

    def _resolved(self, endpoint: Endpoint) -> tuple[str, ...]:
        return (endpoint.ip,) if endpoint.ip else self._names.get(endpoint.host, ())

    def _ips(self, peer: str) -> tuple[str, ...]:
        if peer not in self._known_ips:
            ips = (ip for one in self._endpoints.get(peer, ()) for ip in self._resolved(one))
            self._known_ips[peer] = tuple(dict.fromkeys(ips))
        return self._known_ips[peer]

    def _ips_of(self, peer: str, versions: frozenset[int]) -> tuple[str, ...]:
        return tuple(ip for ip in self._ips(peer) if version_of(ip) in versions)

    def _pingable(self, versions: frozenset[int]) -> Choice:
        """Those of the choice that have an address of a version that can be sent."""
        if versions not in self._can_ping:
            choice = self._choice
            self._can_ping[versions] = Choice(
                *(
                    tuple(peer for peer in group if self._ips_of(peer, versions))
                    for group in (choice.needed, choice.near, choice.others, choice.explored)
                )
            )
        return self._can_ping[versions]

    def _sample(self, peer: str, ip: str, sample: Sample) -> None:
        paths = self._paths.setdefault(peer, {})
        path = paths.get(ip, _Path())
        paths[ip] = _Path(path.samples.add(sample))
        self._judge(peer, sample.at_s)

    def _judge(self, peer: str, now_s: float) -> None:
        """Keep the best address unless another is nearer by what differs, or it fell silent."""
        paths = self._paths.get(peer, {})
        windows = {
            ip: (path.losses >= _MISSED, window.median_ms)
            for ip, path in paths.items()
            if (window := path.samples.window(now_s)) is not None
        }
        if not windows:
            self._best.pop(peer, None)
            return
        best = min(windows, key=lambda ip: (windows[ip], ip))
        held = self._best.get(peer)
        if (
            held in windows
            and windows[held][0] == windows[best][0]
            and not differs(windows[held][1], windows[best][1])
        ):
            return
        self._best[peer] = best

    def _drop_other_ips(self, peer: str) -> None:
        self._known_ips.pop(peer, None)
        self._can_ping.clear()
        ips = self._ips(peer)
        paths = {ip: path for ip, path in self._paths.get(peer, {}).items() if ip in ips}
        self._paths[peer] = paths
        if self._best.get(peer) not in paths:
            self._best.pop(peer, None)
