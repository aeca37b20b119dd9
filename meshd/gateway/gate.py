"""Who may come in: API keys, and what each of them may.

======================  ================================================================
from                    needs
======================  ================================================================
this machine            nothing; a key that is known counts all the same, any other is
                        ignored. With `gateway.local_keys`: as from elsewhere, once keys exist
through a reverse       as from elsewhere, wherever the proxy is, if it says so (`passed_on`)
proxy
elsewhere, keys exist   a known key, as ``Authorization: Bearer`` or ``X-Api-Key``
elsewhere, no keys      nobody is served
another node            nothing: whose client it is has checked it (`OPEN`)
======================  ================================================================
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from aiohttp import web

from meshd.gateway.accounts import Account, Accounts
from meshd.gateway.budget import Standing
from meshd.gateway.intake import Refuse
from meshd.gateway.openai_error import ApiError
from meshd.keys.key import ApiKey
from meshd.keys.key_ring import KeyRing

NO_KEYS = (
    "This gateway has no API keys, so it serves its own machine only. "
    "Make one there: meshd keys add NAME"
)
NO_GOOD_KEYS = (
    "The files with this gateway's API keys cannot be used, so it serves its own machine only. "
    "What is wrong with them is in its log, and there: meshd keys list"
)
_BUSY_RETRY_S = 1
# What reverse proxies and tunnels add to a request that they pass on. nginx adds none by itself.
_PASSED_ON = frozenset(
    {"forwarded", "via", "x-forwarded-for", "x-real-ip", "cf-connecting-ip", "true-client-ip"}
)


class Pass:
    """What the holder of a key may, for one request.

    :ivar key: the key's name, "" for a client of this machine that needs none.
    :ivar priority: the highest is served first; 0 without a key.
    """

    __slots__ = ("_account", "_clock", "_holder", "key", "priority")

    def __init__(
        self,
        holder: ApiKey | None = None,
        account: Account | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key = holder.name if holder else ""
        self.priority = holder.priority if holder else 0
        self._holder = holder
        self._account = account
        self._clock = clock

    @property
    def limited(self) -> bool:
        """Whether there are models that it may not use."""
        return self._holder is not None and bool(self._holder.models)

    def allows(self, model: str) -> bool:
        """:param model: its own name, not an alias."""
        return self._holder is None or self._holder.allows(model)

    def running(self) -> AbstractContextManager[None]:
        """One request from its beginning to the end of its answer, waiting included.

        :raises Refuse: 429 with Retry-After, a budget is used up; nothing was counted then.
        """
        account, holder = self._account, self._holder
        return _FREE if account is None or holder is None else self._counted(account, holder)

    @contextmanager
    def _counted(self, account: Account, holder: ApiKey) -> Iterator[None]:
        now_s = self._clock()
        _check_budgets(holder, account, now_s)
        if account.requests is not None:
            account.requests.take(1, now_s)
        account.running += 1
        try:
            yield
        finally:
            account.running -= 1

    def charge(self, tokens: int) -> None:
        """What the answer took, prompt included; after it, so the last ones may go over."""
        if self._account is not None and self._account.tokens is not None:
            self._account.tokens.take(tokens, self._clock())

    def headers(self) -> dict[str, str]:
        """What OpenAI tells of its limits; empty where there are none."""
        if self._account is None:
            return {}
        now_s, told = self._clock(), {}
        for kind, window in (
            ("requests", self._account.requests),
            ("tokens", self._account.tokens),
        ):
            if window is not None:
                standing = window.standing(now_s)
                told[f"X-RateLimit-Limit-{kind.title()}"] = str(standing.limit)
                told[f"X-RateLimit-Remaining-{kind.title()}"] = str(standing.remaining)
                told[f"X-RateLimit-Reset-{kind.title()}"] = shown_time(standing)
        return told


_FREE = nullcontext()
OPEN = Pass()
"""For whoever needs no key."""


class Gate:
    """Checks keys. :ivar accounts: what each has used."""

    def __init__(
        self,
        ring: Callable[[], KeyRing],
        accounts: Accounts | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """:param ring: the keys in force. :param now: Unix time, for keys that expire."""
        self.accounts = accounts or Accounts()
        self._ring = ring
        self._clock = clock
        self._now = now

    @property
    def configured(self) -> bool:
        """Whether there are keys."""
        return bool(self._ring().by_digest)

    @property
    def closed(self) -> str:
        """Why other machines are not served, "" when they are."""
        ring = self._ring()
        if ring.by_digest:
            return ""
        return NO_GOOD_KEYS if ring.configured else NO_KEYS

    @property
    def errors(self) -> tuple[str, ...]:
        """Of files with keys that cannot be used now, one line each."""
        return self._ring().errors

    def keys_changed(self, ring: KeyRing) -> None:
        """Forget what is not needed any more of keys that are gone."""
        self.accounts.keep(ring.names, self._clock())

    def admit(self, request: web.Request) -> Pass:
        """Who asks. Nothing of the body is needed.

        :raises Refuse: 401 without a valid key, 403 where nobody is served.
        """
        return self.check(request.headers, here=from_here(request.transport))

    def check(self, headers: Mapping[str, str], *, here: bool, local_keys: bool = False) -> Pass:
        """As `admit`, without a request.

        :param here: it came in over loopback.
        :param local_keys: that alone is not enough, once somebody has made keys.
        """
        ring = self._ring()
        free = here and not passed_on(headers) and not (local_keys and ring.configured)
        if not ring.by_digest:
            if free:
                return OPEN
            raise Refuse(ApiError(403, self.closed, "permission_error", code="no_api_keys"))
        sent = key_in(headers)
        key = ring.find(sent) if sent else None
        if key is not None and (key.expires_s is None or self._now() < key.expires_s):
            return Pass(key, self.accounts.of(key, self._clock()), self._clock)
        if free:
            return OPEN
        if key is not None:
            why = f"The API key {key.name!r} has expired."
        elif sent:
            why = "This API key is not known here."
        else:
            why = "An API key is needed, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`."
        raise Refuse(ApiError(401, why, "authentication_error", code="invalid_api_key"))


def key_in(headers: Mapping[str, str]) -> str:
    """The key that a client sent, "" without one. Not from the URL, which lands in logs."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("X-Api-Key", "").strip()


def passed_on(headers: Mapping[str, str]) -> bool:
    """Whether a proxy says that it asks for another machine.

    One that asks for this machine itself, as servers for web developers do, does not count.
    """
    for name in _PASSED_ON:
        if name in headers:
            break
    else:
        return False
    # Of a multidict these are all, also where a header is there twice.
    said = [value for name, value in headers.items() if name.lower() in _PASSED_ON]
    return not all(_own(one) for value in said for one in value.split(","))


def from_here(transport: asyncio.BaseTransport | None) -> bool:
    """Whether a connection came in over loopback or a Unix socket, so from this machine."""
    place = transport.get_extra_info("sockname") if transport is not None else None
    if isinstance(place, tuple):
        return loopback(place[0])
    return isinstance(place, str | bytes)


def loopback(host: str) -> bool:
    """:param host: an address as the socket API writes it."""
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


def _own(client: str) -> bool:
    """:param client: an address as proxies write it, anything else is none of ours."""
    try:
        address = ipaddress.ip_address(client.strip())
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def shown_time(standing: Standing) -> str:
    """Until all is there again, as OpenAI and Go write it: ``6m0s``, ``250ms``."""
    if 0 < standing.reset_s < 1:
        return f"{math.ceil(standing.reset_s * 1000)}ms"
    minutes, seconds = divmod(math.ceil(standing.reset_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _check_budgets(key: ApiKey, account: Account, now_s: float) -> None:
    if key.concurrency and account.running >= key.concurrency:
        raise _too_many(
            f"The API key {key.name!r} has {account.running} requests running, "
            f"which is all that it may have at once.",
            "requests",
            _BUSY_RETRY_S,
        )
    for window, kind in ((account.requests, "requests"), (account.tokens, "tokens")):
        if window is not None and (wait_s := window.wait_s(now_s)):
            raise _too_many(
                f"The API key {key.name!r} has used up its {window.quota} of {kind}.", kind, wait_s
            )


def _too_many(message: str, kind: str, wait_s: float) -> Refuse:
    return Refuse(
        ApiError(
            429,
            message,
            kind,
            code="rate_limit_exceeded",
            retry_after_s=max(1, math.ceil(wait_s)),
        )
    )
