from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from meshd.gateway import cors
from meshd.gateway.front_door import FrontDoor
from meshd.gateway.gate import OPEN, Gate, key_in, loopback
from meshd.gateway.intake import Refuse
from meshd.gateway.routes import Front
from meshd.host_check import HostCheck, bare_host, names_of
from meshd.keys.key import ApiKey, digest
from meshd.keys.key_ring import KeyRing, ring
from meshd.keys.quota import Quota

SECRET = "sk-mesh-secret"
EXPIRED = "sk-mesh-expired"
KEYS = ring(
    [
        ApiKey("alice", digest(SECRET), models=("tiny",), priority=3),
        ApiKey("old", digest(EXPIRED), expires_s=1000.0),
    ]
)


def heads(**given: str) -> CIMultiDict[str]:
    return CIMultiDict({name.replace("_", "-"): value for name, value in given.items()})


def gate(keys: KeyRing = KEYS, now_s: float = 2000.0) -> Gate:
    return Gate(lambda: keys, now=lambda: now_s)


def code(given: CIMultiDict[str], *, here: bool, keys: KeyRing = KEYS) -> tuple[int, str | None]:
    with pytest.raises(Refuse) as refused:
        gate(keys).check(given, here=here)
    return refused.value.error.status, refused.value.error.code


@pytest.mark.parametrize(
    "given",
    [
        heads(authorization=f"Bearer {SECRET}"),
        heads(Authorization=f"bearer  {SECRET} "),
        heads(X_Api_Key=SECRET),
        heads(Authorization="Basic eDp5", X_Api_Key=SECRET),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_a_known_key_is_let_in_and_counted_everywhere(given: CIMultiDict[str], here: bool) -> None:
    who = gate().check(given, here=here)
    assert (who.key, who.priority) == ("alice", 3)
    assert who.allows("tiny")
    assert not who.allows("other")


def test_from_this_machine_no_key_is_needed_and_an_unknown_one_ignored() -> None:
    for sent in (heads(), heads(Authorization="Bearer any"), heads(X_Api_Key="any")):
        assert gate().check(sent, here=True) is OPEN
        assert gate(KeyRing()).check(sent, here=True) is OPEN
    assert OPEN.allows("anything")
    assert OPEN.headers() == {}


def test_from_elsewhere_a_key_is_needed() -> None:
    assert code(heads(), here=False) == (401, "invalid_api_key")
    assert code(heads(Authorization="Bearer no"), here=False) == (401, "invalid_api_key")
    assert code(heads(Authorization="Bearer"), here=False) == (401, "invalid_api_key")
    assert code(heads(Authorization=f"Bearer {EXPIRED}"), here=False) == (401, "invalid_api_key")
    assert gate(now_s=999.0).check(heads(X_Api_Key=EXPIRED), here=False).key == "old"


def test_without_keys_nobody_elsewhere_is_served() -> None:
    assert code(heads(X_Api_Key=SECRET), here=False, keys=KeyRing()) == (403, "no_api_keys")
    broken = KeyRing(errors=("a.yaml: broken",))
    assert code(heads(), here=False, keys=broken) == (403, "no_api_keys")


@pytest.mark.parametrize(
    "sent",
    [
        heads(X_Forwarded_For="1.2.3.4"),
        heads(X_Forwarded_For="127.0.0.1, 1.2.3.4"),
        CIMultiDict([("X-Forwarded-For", "127.0.0.1"), ("x-forwarded-for", "1.2.3.4")]),
        heads(X_Forwarded_For="unknown"),
        heads(Forwarded="for=1.2.3.4"),
        heads(Via="1.1 proxy"),
        heads(X_Real_Ip="2001:db8::1"),
        heads(CF_Connecting_IP="1.2.3.4"),
    ],
)
def test_what_a_proxy_on_this_machine_passes_on_is_from_elsewhere(sent: CIMultiDict[str]) -> None:
    assert code(sent, here=True) == (401, "invalid_api_key")
    assert code(sent, here=True, keys=KeyRing()) == (403, "no_api_keys")
    sent = CIMultiDict([*sent.items(), ("X-Api-Key", SECRET)])
    assert gate().check(sent, here=True).key == "alice"


@pytest.mark.parametrize("said", ["127.0.0.1", "::1, ::ffff:127.0.0.1", "127.0.0.1,127.0.0.2"])
def test_a_proxy_that_asks_for_this_machine_itself_needs_no_key(said: str) -> None:
    assert gate().check(heads(X_Forwarded_For=said), here=True) is OPEN
    assert code(heads(X_Forwarded_For=said), here=False) == (401, "invalid_api_key")


def test_this_machine_needs_keys_too_where_the_settings_say_so() -> None:
    strict = door(Front(local_keys=True), KEYS)
    assert verdict(strict, Host="localhost") == (401, "invalid_api_key")
    assert verdict(strict, Host="localhost", X_Api_Key="any") == (401, "invalid_api_key")
    assert verdict(strict, Host="localhost", X_Api_Key=SECRET) == (200, None)
    assert verdict(strict, "/healthz", Host="localhost") == (200, None)
    # Before there are keys nobody could have one.
    assert verdict(door(Front(local_keys=True)), Host="localhost") == (200, None)
    # A file that broke before it was ever read opens nothing.
    broken = KeyRing(errors=("a.yaml: broken",))
    assert verdict(door(Front(local_keys=True), broken), Host="localhost")[0] == 403


def test_who_has_keys_that_cannot_be_read_is_told_so() -> None:
    broken = KeyRing(errors=("a.yaml: broken",))
    with pytest.raises(Refuse) as refused:
        gate(broken).check(heads(), here=False)
    assert "meshd keys list" in refused.value.error.message
    assert "cannot be used" in door(keys=broken).report()["clients"]["served"]
    assert "meshd keys add" in door().report()["clients"]["served"]
    assert door(keys=KEYS).report()["clients"]["served"] == "all addresses"


def test_no_refusal_repeats_what_was_sent() -> None:
    for sent in (heads(X_Api_Key="sk-wrong-1"), heads(Authorization="Bearer sk-wrong-1")):
        with pytest.raises(Refuse) as refused:
            gate().check(sent, here=False)
        assert b"sk-wrong-1" not in refused.value.error.body()


def budgeted(**may: object) -> tuple[Gate, CIMultiDict[str], list[float]]:
    now = [0.0]
    keys = ring([ApiKey("a", digest(SECRET), **may)])  # type: ignore[arg-type]
    return Gate(lambda: keys, clock=lambda: now[0]), heads(X_Api_Key=SECRET), now


def refusal(gate: Gate, given: CIMultiDict[str]) -> tuple[int, str, int | None]:
    with pytest.raises(Refuse) as refused, gate.check(given, here=False).running():
        pass
    error = refused.value.error
    return error.status, error.type, error.retry_after_s


def test_requests_are_counted_when_they_run() -> None:
    front, given, now = budgeted(rate=Quota(2, 60.0))
    for _ in range(5):
        front.check(given, here=False)  # such as for a list of models
    for _ in range(2):
        with front.check(given, here=False).running():
            pass
    assert refusal(front, given) == (429, "requests", 61)
    headers = front.check(given, here=True).headers()
    assert headers["X-RateLimit-Limit-Requests"] == "2"
    assert headers["X-RateLimit-Remaining-Requests"] == "0"
    assert headers["X-RateLimit-Reset-Requests"] == "1m1s"
    now[0] = 61.0
    with front.check(given, here=False).running():
        assert "X-RateLimit-Limit-Tokens" not in front.check(given, here=False).headers()


def test_requests_at_once_are_given_back_however_they_end() -> None:
    front, given, _ = budgeted(concurrency=1)
    with suppress(ZeroDivisionError), front.check(given, here=False).running():
        assert refusal(front, given) == (429, "requests", 1)
        raise ZeroDivisionError
    with front.check(given, here=False).running():
        pass


def test_tokens_are_charged_afterwards_and_refuse_the_next() -> None:
    front, given, now = budgeted(tokens=Quota(100, 60.0))
    who = front.check(given, here=False)
    with who.running():
        pass
    who.charge(250)
    assert refusal(front, given) == (429, "tokens", 61)
    assert who.headers()["X-RateLimit-Remaining-Tokens"] == "0"
    now[0] = 61.0
    with who.running():
        pass


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("1270.0.0.1", False),
    ],
)
def test_loopback(host: str, here: bool) -> None:
    assert loopback(host) is here


def test_keys_are_not_read_from_anything_else() -> None:
    assert key_in(heads(Cookie=f"key={SECRET}", Api_Key=SECRET, Authorization=SECRET)) == ""


# -- Host -------------------------------------------------------------------------------------

NAMES = names_of(
    "Box1",
    "127.0.0.1 localhost\n127.0.1.1\tbox1.home.example box1 llm  # ours\n10.0.0.9 other\n",
    "nameserver 1.1.1.1\nsearch lab.example. corp.example\n",
)


def test_the_names_of_a_machine() -> None:
    assert set(NAMES) == {
        "box1",
        "box1.local",
        "box1.home.example",
        "llm",
        "box1.lab.example",
        "box1.corp.example",
    }
    assert names_of("a.b.c") == {"a.b.c", "a", "a.local"}
    assert names_of("") == frozenset()


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1:9337", "192.168.0.7", "[::1]:9337", "[fe80::1%25eth0]:1", "::1", "localhost"),
        *(
            "LOCALHOST.:9337",
            "app.localhost",
            "box1",
            "Box1.local:9337",
            "llm",
            "",
            "x.mine.example",
        ),
        *("own.example", "own.example:443"),
    ],
)
def test_hosts_that_fit(host: str) -> None:
    check = HostCheck((*NAMES, "own.example", "*.mine.example"))
    assert check.fits(host)
    assert check.fits(host)  # from memory


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "box1.evil.example", "localhost.evil.example", "127.0.0.1.evil.example"),
        *(
            "mine.example",
            "notlocalhost",
            "evil.example:9337",
            "127.0.0.1@evil.example",
            "a b",
            "*",
        ),
        *("[::1].evil.example", "other", "evil.example#localhost"),
    ],
)
def test_hosts_that_do_not_fit(host: str) -> None:
    check = HostCheck((*NAMES, "*.mine.example"))
    assert not check.fits(host)
    assert not check.fits(host)


def test_a_star_lets_all_fit() -> None:
    assert HostCheck(["*"]).fits("evil.example")


def test_what_is_remembered_is_bounded() -> None:
    check = HostCheck(())
    for number in range(5000):
        assert not check.fits(f"{number}.evil.example")
    assert not check.fits("x" * 100_000)
    assert len(check._verdicts) <= 1024


@given(st.text(max_size=60))
def test_any_host_gets_a_verdict(host: str) -> None:
    HostCheck(NAMES).fits(host)
    bare_host(host)


# -- the door as a whole ------------------------------------------------------------------------


def door(front: Front | None = None, keys: KeyRing | None = None) -> FrontDoor:
    settings, held = front or Front(), keys or KeyRing()
    return FrontDoor(Gate(lambda: held, now=lambda: 2000.0), lambda: settings, NAMES)


def verdict(
    front: FrontDoor, path: str = "/v1/models", *, here: bool = True, **given: str
) -> tuple[int, str | None]:
    try:
        front.check(path, heads(**given), here=here)
    except Refuse as refused:
        return refused.error.status, refused.error.code
    return 200, None


def test_a_page_with_a_name_of_its_own_stays_out() -> None:
    assert verdict(door(), Host="evil.example:9337") == (421, "unknown_host")
    assert verdict(door(Front(hosts=("evil.example",))), Host="evil.example:9337") == (200, None)
    assert verdict(door(), Host="localhost:9337") == (200, None)
    # Who has a key deceives nobody.
    assert verdict(door(keys=KEYS), Host="any.example", X_Api_Key=SECRET) == (200, None)


def test_settings_that_change_count_at_once() -> None:
    now = [Front()]
    front = FrontDoor(Gate(KeyRing), lambda: now[0], ())
    assert verdict(front, Host="a.example")[0] == 421
    now[0] = Front(hosts=("a.example",))
    assert verdict(front, Host="a.example")[0] == 200
    now[0] = Front()
    assert verdict(front, Host="a.example")[0] == 421


def test_health_needs_no_key_and_tells_nobody_without_keys() -> None:
    assert verdict(door(keys=KEYS), "/healthz", here=False, Host="10.0.0.1") == (200, None)
    assert verdict(door(keys=KEYS), "/readyz", here=False, Host="10.0.0.1")[0] == 401
    assert verdict(door(), "/healthz", here=False, Host="10.0.0.1") == (403, "no_api_keys")


@pytest.mark.parametrize(
    ("origin", "host", "out"),
    [
        ("https://evil.example", "localhost:9337", True),
        ("http://evil.example:9337", "127.0.0.1:9337", True),
        ("null", "localhost:9337", True),
        ("http://[bad", "localhost:9337", True),
        ("http://localhost.evil.example", "localhost", True),
        ("http://localhost:3000", "localhost:9337", False),
        ("http://127.0.0.1:3000", "localhost:9337", False),
        ("http://[::1]:3000", "localhost:9337", False),
        ("http://10.0.0.1:9337", "10.0.0.1:9337", False),
        ("vscode-webview://abc", "localhost:9337", False),
        ("app://obsidian.md", "localhost:9337", False),
        ("https://chat.example", "localhost:9337", False),
    ],
)
def test_pages_of_strangers_may_not_spend_our_tokens(origin: str, host: str, out: bool) -> None:
    front = door(Front(origins=("https://chat.example",)))
    expected = (403, "origin_not_allowed") if out else (200, None)
    assert verdict(front, Host=host, Origin=origin) == expected
    assert verdict(door(Front(origins=("*",))), Host=host, Origin=origin) == (200, None)


# -- CORS ---------------------------------------------------------------------------------------

PAGE = "https://chat.example"


def test_without_origins_there_is_no_cors() -> None:
    assert cors.told(PAGE, ()) == {}
    assert cors.preflight(heads(Origin=PAGE, Access_Control_Request_Method="POST"), ()) == {}


def test_a_listed_page_is_named_and_caches_are_told() -> None:
    assert cors.told(PAGE, (PAGE,))["Access-Control-Allow-Origin"] == PAGE
    assert cors.told(PAGE, (PAGE,))["Vary"] == "Origin"
    assert cors.told("https://evil.example", (PAGE,)) == {"Vary": "Origin"}
    assert cors.told("", (PAGE,)) == {"Vary": "Origin"}
    assert cors.told(PAGE, ("*",))["Access-Control-Allow-Origin"] == "*"


def test_a_preflight_is_answered_with_what_was_asked() -> None:
    asked = heads(
        Origin=PAGE,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization,content-type,x-stainless-os",
        Access_Control_Request_Private_Network="true",
    )
    assert cors.is_preflight("OPTIONS", asked)
    assert not cors.is_preflight("OPTIONS", heads())
    answer = cors.preflight(asked, (PAGE,))
    assert answer["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in answer["Access-Control-Allow-Methods"]
    assert answer["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-os"
    assert answer["Access-Control-Allow-Private-Network"] == "true"
    assert "Origin" in answer["Vary"]
    assert "Access-Control-Allow-Credentials" not in answer
    assert cors.preflight(heads(Origin="https://evil.example"), (PAGE,)) == {}
    odd = heads(Origin=PAGE, Access_Control_Request_Headers="a\x00b")
    assert "Access-Control-Allow-Headers" not in cors.preflight(odd, (PAGE,))
