"""One engine in virtual time: slots, a queue, and the prefixes that it still has."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

PREFILL_TOKENS_S = 2000.0
DECODE_TOKENS_S = 50.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """:ivar shared: tokens of its system prompt. :ivar tokens: all of them, those included."""

    conversation: int
    system: int
    shared: int
    tokens: int
    answered: int


@dataclass(frozen=True, slots=True)
class Request:
    """:ivar turn: counted from 0. :ivar asked_s: when."""

    prompt: Prompt
    turn: int
    gateway: int
    asked_s: float


@dataclass(frozen=True, slots=True)
class Served:
    """:ivar fresh_tokens: of the prompt that had to be evaluated.

    :ivar first_s: until the first token, from when it had a slot. :ivar last_s: until the last.
    """

    fresh_tokens: int
    first_s: float
    last_s: float


@dataclass(slots=True)
class Replica:
    """llama-server keeps the last prompt of each slot and others in memory (``--cache-ram``), and
    takes for a new prompt the one that begins like it. Here all are one list, the last used last.

    :ivar slots: requests that it answers at once. :ivar prompts: that it keeps, slots included.
    :ivar kept: system prompt and tokens by conversation.
    :ivar hits: prompt tokens that it had. :ivar asked: prompt tokens of all requests.
    :ivar busy_s: all slots' time together.
    """

    slots: int = 4
    prompts: int = 20
    running: int = 0
    queue: deque[Request] = field(default_factory=deque)
    kept: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)
    hits: int = 0
    asked: int = 0
    busy_s: float = 0.0

    @property
    def load(self) -> int:
        return self.running + len(self.queue)

    def begin(self, prompt: Prompt) -> Served:
        """Give it a slot."""
        cached = self._cached(prompt)
        self.hits += cached
        self.asked += prompt.tokens
        first_s = (prompt.tokens - cached) / PREFILL_TOKENS_S
        last_s = first_s + prompt.answered / DECODE_TOKENS_S
        self.running += 1
        self.busy_s += last_s
        return Served(prompt.tokens - cached, first_s, last_s)

    def _cached(self, prompt: Prompt) -> int:
        """How much of the prompt it has, and keep it from now on."""
        _, own = self.kept.pop(prompt.conversation, (0, 0))
        alike = any(system == prompt.system for system, _ in self.kept.values())
        self.kept[prompt.conversation] = prompt.system, prompt.tokens + prompt.answered
        while len(self.kept) > self.prompts:
            self.kept.popitem(last=False)
        # The last token is always evaluated.
        return min(max(own, prompt.shared if alike else 0), prompt.tokens - 1)
