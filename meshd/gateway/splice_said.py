"""What the client has of an answer, against which a continuation is laid."""

from __future__ import annotations

from typing import Any, Literal

from meshd.gateway.transcript import Told


class BrokenSpliceError(Exception):
    """A continuation that cannot be gone on with.

    :ivar kind: `diverged`: a replay said something else, so only a prefill may go on;
        `error`: the engine sent an error; `unreadable`: it sent something that is no event of
        this protocol.
    """

    def __init__(self, kind: Literal["diverged", "error", "unreadable"]) -> None:
        super().__init__(kind)
        self.kind = kind


class Said:
    """The text so far, and how much of it a replay has said again.

    :ivar replays: the answer begins at the beginning, so its counts are those of the whole.
    """

    __slots__ = ("_new", "_position", "_sent", "replays", "told")

    def __init__(self, told: Told, replays: bool) -> None:
        self.told = told
        self.replays = replays
        self._sent = {"text": told.text, "reasoning": told.reasoning}
        self._position = {key: 0 if replays else len(text) for key, text in self._sent.items()}
        self._new: dict[str, list[str]] = {"text": [], "reasoning": []}

    def text(self, piece: str) -> str:
        """What of a piece of the answer's text is new to the client."""
        if self._position["reasoning"] < len(self.told.reasoning):
            raise BrokenSpliceError("diverged")
        return self._of("text", piece)

    def reasoning(self, piece: str) -> str:
        return self._of("reasoning", piece)

    def caught_up(self) -> None:
        """:raises BrokenSpliceError: the answer goes on to something else, or ends, too early."""
        if any(self._position[key] < len(text) for key, text in self._sent.items()):
            raise BrokenSpliceError("diverged")

    def whole(self, key: Literal["text", "reasoning"]) -> str:
        """All of it, as the client has it."""
        return self._sent[key] + "".join(self._new[key])

    def _of(self, key: str, piece: str) -> str:
        sent, at = self._sent[key], self._position[key]
        again = min(len(piece), len(sent) - at)
        if not sent.startswith(piece[:again], at):
            raise BrokenSpliceError("diverged")
        self._position[key] = at + again
        new = piece[again:]
        if new:
            self._new[key].append(new)
        return new

    def fix_usage(self, usage: dict[str, Any], prompt: str, completion: str) -> None:
        """What the client sent and got, where a prefill counts the text so far as sent.

        :param prompt: name of the count of what was sent, and of what was got.
        """
        if self.replays:
            return
        usage[prompt] = max(0, usage[prompt] - self.told.tokens)
        usage[completion] += self.told.tokens
        if "total_tokens" in usage:
            usage["total_tokens"] = usage[prompt] + usage[completion]
        details = usage.get(f"{prompt}_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            details["cached_tokens"] = min(details["cached_tokens"], usage[prompt])

    def fix_timings(self, timings: dict[str, Any]) -> None:
        """llama-server's `timings`: the same for its counts, at the rates it measured itself."""
        if self.replays:
            return
        left = self.told.tokens
        for name in ("prompt_n", "cache_n"):  # the text so far was read, or lay in the cache
            taken = min(left, timings[name])
            timings[name] -= taken
            left -= taken
        timings["predicted_n"] += self.told.tokens
        for what in ("prompt", "predicted"):
            timings[f"{what}_ms"] = timings[f"{what}_n"] * timings[f"{what}_per_token_ms"]
