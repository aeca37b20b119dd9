"""Sorts tests into tiers by folder, skips what cannot run here, and counts each tier at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from tests import tiers

# How long an example takes says more of the machine than of the code. The same examples each time,
# so that a run says of a change what it broke; MESHD_EXPLORE=1 looks for new ones.
explore = os.environ.get("MESHD_EXPLORE", "0") != "0"
settings.register_profile("meshd", deadline=None, derandomize=not explore)
settings.load_profile("meshd")

# Nodes that tests start have nobody's machine to measure; who tests that takes it away again.
os.environ.setdefault("MESHD_MEASURE_SPEED", "never")

TALLIES: pytest.StashKey[dict[str, tiers.Tally]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLIES] = {}
    config.pluginmanager.register(Counter(config.stash[TALLIES]))


@pytest.fixture(autouse=True)
def logs_go_where_they_went() -> Iterator[None]:
    """A command sets up logging for its own process, to a stream that a test takes away again."""
    yield
    structlog.reset_defaults()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Quick tiers first, so that a simple mistake shows in seconds.
    order = {tier.name: place for place, tier in enumerate(tiers.TIERS)}
    tier_by_item = {item: tiers.tier_of(item.path) for item in items}
    items.sort(key=lambda item: order[tier.name] if (tier := tier_by_item[item]) else -1)
    for item in items:
        tier = tier_by_item[item]
        if tier is None or tier.name == "unit":
            continue
        item.add_marker(getattr(pytest.mark, tier.name))
        if tier.tries_again:
            item.add_marker(pytest.mark.flaky(reruns=1))
        if tier.timeout_s and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(tier.timeout_s))
        reason = tier.obstacle()
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"{tier.name} tier {reason}"))


class Counter:
    """Counts what is told of each test in the end: a try that was made again is none."""

    def __init__(self, tallies: dict[str, tiers.Tally]) -> None:
        self._tallies = tallies

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tier = tiers.tier_of(tiers.TESTS.parent / report.location[0])
        if tier is not None:
            count(self._tallies.setdefault(tier.name, tiers.Tally()), report)


def count(tally: tiers.Tally, report: pytest.TestReport) -> None:
    """One test has up to three reports; it passes by its call, and fails or is skipped by any."""
    if report.outcome == "rerun":
        tally.again += 1
    elif report.failed:
        tally.failed += 1
    elif report.skipped:
        # (path, line, "Skipped: why") for a skip, a wasxfail attribute for an expected failure
        reason = getattr(report, "wasxfail", None) or (
            report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        )
        tally.skip(reason.removeprefix("Skipped: "))
    elif report.when == "call":
        tally.passed += 1


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tallies = config.stash[TALLIES]
    if tallies:
        terminalreporter.section("tiers")
    for tier in tiers.TIERS:
        if tier.name in tallies:
            terminalreporter.write_line(tallies[tier.name].line(tier.name))
