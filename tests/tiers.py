"""The tiers of tests, and what a machine must have to run each (see docs/testing.md)."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier. :ivar obstacle: says why it cannot run on this machine, or None when it can.

    :ivar tries_again: what fails is tried once more, and listed as that: real processes on a
        machine that others use as well. A fault of ours fails twice.
    """

    name: str
    obstacle: Callable[[], str | None]
    timeout_s: int | None = None
    tries_again: bool = False


def nothing() -> str | None:
    return None


@functools.cache
def no_debian_root() -> str | None:
    """Why no Debian root can be made and entered here."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("apt-get") is None or not Path("/etc/debian_version").exists():
        return "needs a Debian with apt"
    return None


@functools.cache
def no_lab() -> str | None:
    """Why systemd containers cannot be booted here."""
    reason = no_debian_root()
    if reason:
        return reason
    mount = (
        "umount --recursive /sys/fs/cgroup 2>/dev/null || true;"
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )
    probe = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", mount]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"needs mount namespaces ({error})"
    if done.returncode != 0:
        cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"needs to mount cgroup2 in a namespace of its own ({cause})"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "needs overlayfs"
    return None


TIERS = (
    Tier("unit", nothing),
    Tier("sim", nothing, timeout_s=600),
    Tier("wire", nothing, tries_again=True),
    # The first test of a cold run also builds the lab root (about two minutes).
    Tier("lab", no_lab, timeout_s=600, tries_again=True),
    Tier("image", no_debian_root, timeout_s=1200),
)


def tier_of(path: Path) -> Tier | None:
    """The tier of a test file, by its folder below tests/."""
    if not path.is_relative_to(TESTS):
        return None
    first = path.relative_to(TESTS).parts[0]
    return next((tier for tier in TIERS if tier.name == first), None)


@dataclass(slots=True)
class Tally:
    """Results of one tier in this run. :ivar reasons: why tests were skipped, and how many.

    :ivar again: how many tries were made again.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    again: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def skip(self, reason: str) -> None:
        self.skipped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def line(self, name: str) -> str:
        text = f"{name}: {self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        if self.again:
            text += f", {self.again} tried again"
        if self.reasons:
            causes = (f"{count}x {reason}" for reason, count in self.reasons.items())
            text += f" ({'; '.join(causes)})"
        return text
