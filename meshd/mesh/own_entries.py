"""What this node itself says: one entry a namespace, sent when its content changes."""

from __future__ import annotations

from meshd.mesh.envelope import SPACE_MAX_BYTES, Signer, seal_entry
from meshd.mesh.intake import Intake

LOST_WITH_SESSION_S = 5.0


class OwnEntries:
    """:ivar connected: whether a session is there to send over; if not, it waits for one."""

    def __init__(self, intake: Intake, signer: Signer, mesh: str) -> None:
        self._intake = intake
        self._signer = signer
        self._mesh = mesh
        self._version = 0
        self._payloads: dict[str, bytes] = {}
        self._raw: dict[str, bytes] = {}
        self._sent_s: dict[str, float] = {}
        self._waiting: set[str] = set()
        self.connected = False

    def say(self, space: str, payload: bytes, now_s: float) -> bytes | None:
        """What to put, None when this was said already or has to wait.

        :raises ValueError: it is longer than its namespace allows.
        """
        if self._payloads.get(space) == payload:
            return None
        return self._write(space, payload, now_s)

    def say_again(self, now_s: float) -> list[bytes]:
        """Everything, in the present incarnation."""
        return [
            raw
            for space, payload in list(self._payloads.items())
            if (raw := self._write(space, payload, now_s)) is not None
        ]

    def forget(self, space: str) -> None:
        """Let `say` say it again even if it is what was said last."""
        self._payloads.pop(space, None)

    @property
    def standing(self) -> bytes:
        """The newest entry that shows our incarnation, empty before the first."""
        for space in ("st", "rec", "dem"):
            slot = self._intake.lattice.get(self._intake.me, space)
            if slot is not None and slot.incarnation == self._intake.incarnation:
                return slot.raw
        return b""

    def session_began(self, now_s: float) -> list[bytes]:
        self.connected = True
        waiting, self._waiting = self._waiting, set()
        self._sent_s.update(dict.fromkeys(waiting, now_s))
        return [self._raw[space] for space in sorted(waiting)]

    def session_ended(self, now_s: float) -> None:
        """What was sent last may have gone down with it."""
        self.connected = False
        for space, sent_s in self._sent_s.items():
            if now_s - sent_s < LOST_WITH_SESSION_S:
                self._waiting.add(space)

    def _write(self, space: str, payload: bytes, now_s: float) -> bytes | None:
        if len(payload) > SPACE_MAX_BYTES[space]:
            raise ValueError(f"{space}: {len(payload)} bytes are too many")
        self._payloads[space] = payload
        self._version += 1
        intake = self._intake
        raw = seal_entry(
            self._signer, self._mesh, space, intake.incarnation, self._version, payload
        )
        self._raw[space] = raw
        intake.write(space, self._version, raw, payload, now_s)
        if not self.connected:
            self._waiting.add(space)
            return None
        self._sent_s[space] = now_s
        return raw
