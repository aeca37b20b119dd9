"""Telling the service manager how we are: sd_notify(3) over the `sdnotify` package."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import sdnotify

_SEND_TIMEOUT_S = 1.0
_MAX_SENTENCE = 512


def watchdog_interval_s(environment: Mapping[str, str], pid: int) -> float | None:
    """How often the manager wants to hear of us, None where it does not ask.

    sd_watchdog_enabled(3): WATCHDOG_PID, when set, must name us, else a child would feed the
    watchdog of its parent.
    """
    try:
        interval_us = int(environment["WATCHDOG_USEC"])
        named = int(environment.get("WATCHDOG_PID") or pid)
    except (KeyError, ValueError):
        return None
    return interval_us / 1e6 if interval_us > 0 and named == pid else None


class Notifier:
    """Without NOTIFY_SOCKET every call does nothing, so callers need not know of systemd.

    :ivar watchdog_interval_s: the watchdog's whole interval; `watchdog` is due well within it.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._notifier: sdnotify.SystemdNotifier | None = None
        self.watchdog_interval_s = watchdog_interval_s(environment, os.getpid())
        # sdnotify looks at the process's environment only.
        if environment.get("NOTIFY_SOCKET") and os.environ.get("NOTIFY_SOCKET"):
            self._notifier = sdnotify.SystemdNotifier()
            if self._notifier.socket is not None:
                self._notifier.socket.settimeout(_SEND_TIMEOUT_S)

    def ready(self) -> None:
        """We serve; also the end of a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins. The time stamp must be in the same datagram (systemd.service(5))."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, sentence: str) -> None:
        """A sentence for `systemctl status`; one line, cut to 512 characters."""
        line = " ".join(sentence.split())
        self._send(f"STATUS={line[:_MAX_SENTENCE]}")

    def watchdog(self) -> None:
        """One more pass of the loop is done."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()
        self._notifier = None

    def _send(self, *lines: str) -> None:
        if self._notifier is not None:
            # sdnotify encodes as Latin-1; so the bytes that leave are UTF-8.
            self._notifier.notify("\n".join(lines).encode().decode("latin-1"))
