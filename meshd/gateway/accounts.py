"""What each API key has used lately: requests, tokens, and what runs now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshd.gateway.budget import SLOTS, Window
from meshd.keys.key import ApiKey
from meshd.keys.quota import LONGEST_S, Quota

History = Mapping[str, Sequence[tuple[float, int]]]
"""By a key's name: how many seconds ago, and how many tokens."""

_COUNTS_S = LONGEST_S * (1 + 1 / SLOTS)
# Names of keys that are gone; of a node that has more, the oldest are forgotten.
_MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class Account:
    """:ivar running: requests in work. :ivar requests: None where there is no limit."""

    running: int = 0
    requests: Window | None = None
    tokens: Window | None = None


class Accounts:
    """One for each key, by its name: who gets a new key under the old name keeps its debts.

    So does a key whose file was empty for a moment, because somebody wrote it anew.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        # Tokens of keys that asked nothing in this life, or are gone: when, and how many.
        self._remembered: dict[str, list[tuple[float, int]]] = {}

    def of(self, key: ApiKey, now_s: float) -> Account:
        """:param now_s: of the monotonic clock."""
        account = self._accounts.get(key.name)
        if account is None:
            account = self._accounts[key.name] = Account()
        if key.rate is not (account.requests.quota if account.requests else None):
            account.requests = _window(key.rate, account.requests, now_s)
        if key.tokens is not (account.tokens.quota if account.tokens else None):
            account.tokens = _window(key.tokens, account.tokens, now_s)
            if account.tokens is not None and (old := self._remembered.pop(key.name, None)):
                account.tokens.remember(((now_s - at_s, n) for at_s, n in old), now_s)
        return account

    def keep(self, names: Iterable[str], now_s: float) -> None:
        """Forget all keys but these, and those that have something running; not their tokens."""
        wanted = set(names)
        for name, account in [*self._accounts.items()]:
            if name in wanted or account.running:
                continue
            if account.tokens is not None and (told := account.tokens.history(now_s)):
                self._remembered[name] = [(now_s - age_s, n) for age_s, n in told]
            del self._accounts[name]
        self._prune(now_s)

    def history(self, now_s: float) -> dict[str, list[tuple[float, int]]]:
        """The tokens that count still, to be remembered in a next life."""
        self._prune(now_s)
        told = {
            name: [(now_s - at_s, amount) for at_s, amount in pairs]
            for name, pairs in self._remembered.items()
        }
        for name, account in self._accounts.items():
            if account.tokens is not None and (pairs := account.tokens.history(now_s)):
                told[name] = pairs
        return told

    def remember(self, history: History, now_s: float) -> None:
        """What an earlier life told, with its ages as of now."""
        self._remembered = {
            name: [(now_s - age_s, amount) for age_s, amount in pairs]
            for name, pairs in history.items()
        }
        self._prune(now_s)

    def _prune(self, now_s: float) -> None:
        """Of what is remembered, keep what some budget may still count."""
        for name, pairs in [*self._remembered.items()]:
            pairs[:] = [pair for pair in pairs if now_s - pair[0] <= _COUNTS_S]
            if not pairs:
                del self._remembered[name]
        for name in [*self._remembered][: max(0, len(self._remembered) - _MOST_REMEMBERED)]:
            del self._remembered[name]


def _window(quota: Quota | None, before: Window | None, now_s: float) -> Window | None:
    """A new limit does not make undone what was used."""
    if quota is None:
        return None
    if before is not None and before.quota == quota:
        before.quota = quota
        return before
    window = Window(quota)
    if before is not None:
        window.remember(before.history(now_s), now_s)
    return window
