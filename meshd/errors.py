"""The few exception types that cross rooms.

A `UserError` reaches a person as one line: place, cause, way out. Anything else that escapes is a
bug and is reported as such.
"""

from __future__ import annotations


class UserError(Exception):
    """Something a person can mend.

    :ivar message: one line, naming the place and the cause.
    :ivar hint: the way out, often a command; empty when there is none.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
