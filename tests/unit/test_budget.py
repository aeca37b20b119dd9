from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.accounts import Accounts
from meshd.gateway.accounts_file import AccountsFile
from meshd.gateway.budget import SLOTS, Standing, Window
from meshd.gateway.crowd import Crowd, CrowdLimits, household, limits_for
from meshd.gateway.gate import shown_time
from meshd.keys.key import ApiKey
from meshd.keys.quota import Quota

MINUTE = Quota(60, 60.0)


def test_a_burst_up_to_the_limit_then_the_whole_period() -> None:
    window = Window(MINUTE)
    for _ in range(60):
        assert window.wait_s(1000.0) == 0
        window.take(1, 1000.0)
    assert window.wait_s(1000.0) == 61.0
    assert window.wait_s(1060.5) == 0.5
    assert window.wait_s(1061.0) == 0
    assert window.standing(1061.0) == Standing(60, 60, 0.0)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 25)), max_size=80),
    st.sampled_from([Quota(40, 60.0), Quota(100, 3600.0), Quota(1, 1.0)]),
)
def test_in_no_span_of_the_period_more_than_the_limit(
    asked: list[tuple[float, int]], quota: Quota
) -> None:
    """Of amounts that are taken only where there is room, as requests are."""
    window, now_s, taken = Window(quota), 5000.0, []
    for pause_s, amount in asked:
        now_s += pause_s
        wait_s = window.wait_s(now_s, amount)
        if amount <= quota.limit and wait_s == 0:
            window.take(amount, now_s)
            taken.append((now_s, amount))
        else:
            assert wait_s <= quota.period_s * (1 + 1 / SLOTS) + 1e-6
            assert deepcopy(window).wait_s(now_s + wait_s + 1e-6, amount) == 0
    for start_s, _ in taken:
        inside = sum(n for at_s, n in taken if start_s <= at_s < start_s + quota.period_s)
        assert inside <= quota.limit


def test_what_goes_over_is_paid_back() -> None:
    window = Window(Quota(100, 60.0))
    window.take(350, 0.0)
    assert window.standing(10.0) == Standing(100, 0, 51.0)
    assert window.wait_s(60.5) == 0.5
    assert window.wait_s(61.0) == 0
    window.take(0, 61.0)
    window.take(-5, 61.0)
    assert window.standing(61.0).remaining == 100


def test_its_memory_is_bounded() -> None:
    window = Window(Quota(10**9, 86400.0))
    for second in range(0, 200_000, 7):
        window.take(1, float(second))
    assert len(window.history(200_000.0)) <= SLOTS + 2


def test_history_is_taken_up_in_a_next_life() -> None:
    window = Window(Quota(1000, 3600.0))
    for at_s, amount in ((0.0, 100), (600.0, 200), (1200.0, 300)):
        window.take(amount, at_s)
    told = window.history(1500.0)
    again = Window(Quota(1000, 3600.0))
    again.remember([(age_s + 100, amount) for age_s, amount in told], 50.0)
    assert again.standing(50.0).remaining == 400
    # The first hundred left an hour after they were taken, as if nothing had been in between.
    assert again.standing(50.0 + 3600 + 60 - 1600 + 1).remaining == 500


def test_a_new_limit_does_not_undo_what_was_used() -> None:
    accounts = Accounts()
    old = ApiKey("a", b"", tokens=Quota(1000, 3600.0))
    window = accounts.of(old, 0.0).tokens
    assert window is not None
    window.take(900, 0.0)
    same = accounts.of(ApiKey("a", b"other", tokens=Quota(1000, 3600.0)), 1.0).tokens
    assert same is window
    more = accounts.of(ApiKey("a", b"", tokens=Quota(1200, 3600.0)), 2.0).tokens
    assert more is not None
    assert more.standing(2.0).remaining == 300
    assert accounts.of(ApiKey("a", b""), 3.0).tokens is None


def test_accounts_of_keys_that_are_gone_are_forgotten_when_nothing_runs() -> None:
    accounts = Accounts()
    key = ApiKey("a", b"", tokens=Quota(10, 60.0))
    account = accounts.of(key, 0.0)
    account.running = 1
    accounts.keep(["b"], 0.0)
    assert accounts.of(key, 0.0) is account
    account.running = 0
    accounts.keep([], 0.0)
    assert accounts.of(key, 0.0) is not account


def test_a_key_that_comes_back_has_its_debts_still() -> None:
    accounts = Accounts()
    key = ApiKey("a", b"", rate=Quota(5, 60.0), tokens=Quota(1000, 86400.0))
    window = accounts.of(key, 100.0).tokens
    assert window is not None
    window.take(900, 100.0)
    # Its file is empty for a moment, or `meshd keys remove` and `add` are called.
    accounts.keep([], 200.0)
    assert accounts.history(200.0)["a"][0][1] == 900
    accounts.keep(["a"], 201.0)
    tokens = accounts.of(ApiKey("a", b"new", tokens=Quota(1000, 86400.0)), 300.0).tokens
    assert tokens is not None
    assert tokens.standing(300.0).remaining == 100
    # The day is counted from when they were used.
    assert tokens.standing(100.0 + 86400.0 + 1440.0 + 1.0).remaining == 1000


def test_what_is_remembered_of_keys_that_are_gone_ends_and_is_bounded() -> None:
    accounts = Accounts()
    accounts.remember({f"k{number}": [(0.0, 1)] for number in range(10_500)}, 0.0)
    assert len(accounts.history(1.0)) == 10_000
    assert accounts.history(2 * 86400.0) == {}


async def test_token_budgets_outlive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state/token-budgets.json"
    key = ApiKey("a", b"", rate=Quota(5, 60.0), tokens=Quota(1000, 86400.0))
    first = Accounts()
    kept = AccountsFile(path, first, clock=lambda: 100.0, now=lambda: 1e9)
    await kept.load()
    window = first.of(key, 50.0).tokens
    assert window is not None
    window.take(700, 50.0)
    await kept.save()
    written = path.stat().st_mtime_ns
    await kept.save()
    assert path.stat().st_mtime_ns == written  # nothing new
    first.keep([], 100.0)
    await kept.save()
    assert path.stat().st_mtime_ns == written  # gone, and not forgotten
    assert path.stat().st_mode & 0o777 == 0o600

    second = Accounts()
    again = AccountsFile(path, second, clock=lambda: 7.0, now=lambda: 1e9 + 3600)
    await again.load()
    # Kept on even by a life in which the key asked nothing.
    assert second.history(7.0)["a"][0][1] == 700
    tokens = second.of(key, 8.0).tokens
    assert tokens is not None
    assert tokens.standing(8.0).remaining == 300
    day_after = tokens.standing(8.0 + 86400.0 + 1440.0)
    assert day_after.remaining == 1000


async def test_as_much_used_later_is_written_too(tmp_path: Path) -> None:
    """A steady load has the same sum all the time; its ages must not grow old in the file."""
    path, now = tmp_path / "t.json", [0.0]
    accounts = Accounts()
    key = ApiKey("a", b"", tokens=Quota(100, 60.0))
    kept = AccountsFile(path, accounts, clock=lambda: now[0], now=lambda: 1e9 + now[0])
    for now[0] in (1000.0, 1100.0):
        window = accounts.of(key, now[0]).tokens
        assert window is not None
        window.take(100, now[0])
        await kept.save()
    again = Accounts()
    await AccountsFile(path, again, clock=lambda: 5.0, now=lambda: 1e9 + 1101.0).load()
    tokens = again.of(key, 5.0).tokens
    assert tokens is not None
    assert tokens.standing(5.0).remaining == 0


@pytest.mark.parametrize("data", [b"", b"{", b'{"schema": 2, "saved_s": 1, "tokens": {}}', b"\xff"])
async def test_a_broken_file_is_nothing_and_no_fault(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(data)
    accounts = Accounts()
    await AccountsFile(path, accounts).load()
    assert accounts.history(0.0) == {}


async def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    accounts = Accounts()
    window = accounts.of(ApiKey("a", b"", tokens=Quota(9, 60.0)), 0.0).tokens
    assert window is not None
    window.take(1, 0.0)
    await AccountsFile(tmp_path / "file/t.json", accounts, clock=lambda: 0.0).save()


@pytest.mark.parametrize(
    ("reset_s", "shown"),
    [(0, "0s"), (0.0005, "1ms"), (0.25, "250ms"), (1, "1s"), (59.2, "1m0s"), (3661, "1h1m1s")],
)
def test_times_as_openai_writes_them(reset_s: float, shown: str) -> None:
    assert shown_time(Standing(1, 1, reset_s)) == shown


def test_a_crowd_is_bounded_in_all_and_by_address() -> None:
    crowd = Crowd(CrowdLimits(5, 2))
    assert [crowd.enter("a"), crowd.enter("a"), crowd.enter("b")] == ["", "", ""]
    assert "connections from a" in crowd.enter("a")
    assert [crowd.enter(""), crowd.enter("")] == ["", ""]
    assert "all the 5 connections" in crowd.enter("c")
    crowd.leave("a")
    crowd.leave("b")
    assert [crowd.enter("a"), crowd.enter("c"), crowd.total] == ["", "", 5]


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("?", "?"),
    ],
)
def test_who_has_a_whole_network_counts_as_one(host: str, counted: str) -> None:
    assert household(host) == counted


@given(st.integers(0, 10**6))
def test_limits_leave_files_for_engines(descriptors: int) -> None:
    limits = limits_for(descriptors)
    assert 0 < limits.each < limits.total
    assert limits.total <= max(64, descriptors // 2)
