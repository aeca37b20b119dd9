"""How quick each place was lately, as this gateway saw it. No clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

# Half of an average is from the last ten or so requests.
_NEW = 0.07
# After so many measurements elsewhere, what is known of a place counts half, and what is so
# everywhere the other half. One that had a bad moment is passed over, so nothing else would ever
# tell that it is well again.
_FADE = 64
# One first token counts as so many times late at most: a node whose gateway was just restarted is
# no slow node.
_LATE = 4.0
_MAX_PLACES = 4096
# Of a place that served nothing yet, in a mesh where none did.
_SERVICE_S = 5.0


@dataclass(frozen=True, slots=True)
class Speed:
    """:ivar prefill_tokens_s: prompt tokens evaluated a second, 0 when nothing was measured.

    :ivar service_s: how long a request occupies a slot, on the average.
    """

    prefill_tokens_s: float = 0.0
    service_s: float = _SERVICE_S


@dataclass(slots=True)
class _Averages:
    """Tokens and seconds apart: their quotient is then that of the large prompts, not of the
    many small ones, whose time is all overhead.

    :ivar at: how much had been measured everywhere when this was last.
    """

    tokens: float = 0.0
    seconds: float = 0.0
    service_s: float = 0.0
    at: int = 0

    def evaluated(self, tokens: int, seconds: float) -> None:
        new = _NEW if self.seconds else 1.0
        if self.seconds:
            usual_s = self.seconds * max(1.0, tokens / self.tokens)
            seconds = min(seconds, _LATE * usual_s)
        self.tokens += new * (tokens - self.tokens)
        self.seconds += new * (seconds - self.seconds)

    def served(self, seconds: float) -> None:
        self.service_s += (_NEW if self.service_s else 1.0) * (seconds - self.service_s)


@dataclass(slots=True)
class Speeds:
    """Moving averages by `choice.place`; bounded, the places not heard of for longest go first."""

    _places: dict[str, _Averages] = field(default_factory=dict)
    _everywhere: _Averages = field(default_factory=_Averages)

    def evaluated(self, where: str, prompt_tokens: int, seconds: float) -> None:
        """A first token came. :param prompt_tokens: less those that the engine had in its cache.

        :param seconds: from when the request was sent on; only of requests that found a free slot.
        """
        if prompt_tokens > 0 and seconds > 0:
            self._at(where).evaluated(prompt_tokens, seconds)
            self._everywhere.evaluated(prompt_tokens, seconds)

    def served(self, where: str, seconds: float) -> None:
        """An answer is complete. :param seconds: that it took, waiting for a slot not counted."""
        if seconds > 0:
            self._at(where).served(seconds)
            self._everywhere.served(seconds)

    def of(self, where: str) -> Speed:
        """What is known of a place; of one not known, what is so of the others on the average."""
        one = self._places.get(where)
        rate = _rate(one) if one else 0.0
        service_s = one.service_s if one else 0.0
        if not rate:
            rates = [known for other in self._places.values() if (known := _rate(other))]
            rate = sum(rates) / len(rates) if rates else 0.0
        if not service_s:
            all_s = [other.service_s for other in self._places.values() if other.service_s]
            service_s = sum(all_s) / len(all_s) if all_s else _SERVICE_S
        # Just measured, or a bad moment long ago?
        kept = 0.5 ** ((self._everywhere.at - one.at) / _FADE) if one else 1.0
        return Speed(
            _blend(rate, _rate(self._everywhere), kept),
            _blend(service_s, self._everywhere.service_s, kept),
        )

    def _at(self, where: str) -> _Averages:
        one = self._places.pop(where, None) or _Averages()
        self._places[where] = one
        self._everywhere.at += 1
        one.at = self._everywhere.at
        if len(self._places) > _MAX_PLACES:
            del self._places[next(iter(self._places))]
        return one


def _blend(own: float, common: float, kept: float) -> float:
    return kept * own + (1 - kept) * common if common else own


def _rate(one: _Averages) -> float:
    return one.tokens / one.seconds if one.seconds else 0.0


def predicted_s(speed: Speed, *, rtt_ms: float, load: int, slots: int, prompt_tokens: int) -> float:
    """Time to the first token of one more request, nothing of it being cached, in seconds.

    :param load: requests that the place has already, those that wait among them.
    """
    waves = max(0, load + 1 - slots) / slots
    prefill_s = prompt_tokens / speed.prefill_tokens_s if speed.prefill_tokens_s else 0.0
    return rtt_ms / 1000 + waves * speed.service_s + prefill_s
