"""What each API key has used lately: requests, tokens, and what runs now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshd.gateway.budget import Window
from meshd.keys.key import ApiKey
from meshd.keys.quota import Quota

History = Mapping[str, Sequence[tuple[float, int]]]
"""By a key's name: how many seconds ago, and how many tokens."""


@dataclass(slots=True)
class Account:
    """:ivar running: requests in work. :ivar requests: None where there is no limit."""

    running: int = 0
    requests: Window | None = None
    tokens: Window | None = None


class Accounts:
    """One for each key, by its name: who gets a new key under the old name keeps its debts."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._remembered: dict[str, Sequence[tuple[float, int]]] = {}
        self._remembered_s = 0.0

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
                aged_s = now_s - self._remembered_s
                account.tokens.remember(((age_s + aged_s, n) for age_s, n in old), now_s)
        return account

    def keep(self, names: Iterable[str]) -> None:
        """Forget all keys but these, and those that have something running."""
        wanted = set(names)
        for name, account in [*self._accounts.items()]:
            if name not in wanted and not account.running:
                del self._accounts[name]
        self._remembered = {k: v for k, v in self._remembered.items() if k in wanted}

    def history(self, now_s: float) -> dict[str, list[tuple[float, int]]]:
        """The tokens that count still, to be remembered in a next life."""
        aged_s = now_s - self._remembered_s
        told = {
            name: [(age_s + aged_s, amount) for age_s, amount in pairs]
            for name, pairs in self._remembered.items()
        }
        for name, account in self._accounts.items():
            if account.tokens is not None and (pairs := account.tokens.history(now_s)):
                told[name] = pairs
        return told

    def remember(self, history: History, now_s: float) -> None:
        """What an earlier life told, with its ages as of now."""
        self._remembered, self._remembered_s = dict(history), now_s


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
