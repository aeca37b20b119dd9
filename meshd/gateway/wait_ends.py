"""How a wait ends without a turn."""

from __future__ import annotations


class Full(Exception):  # noqa: N818 -- an answer, not a fault
    """No more may wait. :ivar own: of this key; there is room for others.

    :ivar retry_s: when to try again, at a guess.
    """

    def __init__(self, retry_s: float, *, own: bool) -> None:
        super().__init__("no more requests may wait")
        self.retry_s = retry_s
        self.own = own


class TooLong(Exception):  # noqa: N818 -- an answer, not a fault
    """It would take, or has taken, longer than the request may wait.

    :ivar eta_s: seconds until it may be served, None when that is not known.
    """

    def __init__(self, eta_s: float | None) -> None:
        super().__init__("the request would wait too long")
        self.eta_s = eta_s


class Stopping(Exception):  # noqa: N818 -- an answer, not a fault
    """The gateway is being stopped."""
