"""Conversations as they come: when each begins, and how its turns follow.

The recording (`tests/data/conversations.json`) was drawn once, by `draw`, from shapes that others
have published, so that it can be given away: two thirds are chats with 2 turns on the average, of
70 tokens asked and 215 answered (LMSYS-Chat-1M, Zheng et al. 2023), one third are agents with long
prompts shared by all of their kind, a dozen turns and answers of 180 tokens (the tool and agent
trace of Mooncake, Qin et al. 2024). All of a kind begin with the same system prompt; the kinds are
asked for as by Zipf's law. Conversations begin as a Poisson process.
"""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

FILE = Path(__file__).resolve().parents[2] / "tests" / "data" / "conversations.json"
_CHATS, _AGENTS = 12, 5


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """:ivar think_s: from the last answer's end to this question. :ivar asked, answered: tokens."""

    think_s: float
    asked: int
    answered: int


class Conversation(msgspec.Struct, frozen=True, array_like=True):
    """:ivar start_s: in units of the recording's mean distance between two beginnings.

    :ivar system: which system prompt. :ivar system_tokens: and its length.
    """

    start_s: float
    system: int
    system_tokens: int
    turns: tuple[Turn, ...]


def load(path: Path = FILE) -> list[Conversation]:
    """The recording, in the order of the beginnings."""
    return msgspec.json.decode(path.read_bytes(), type=list[Conversation])


def draw(count: int, seed: int) -> list[Conversation]:
    """Conversations by the model above; the same ones for the same seed."""
    chance = random.Random(seed)
    lengths = {kind: round(chance.uniform(40, 600)) for kind in range(_CHATS)}
    lengths |= {_CHATS + kind: round(chance.uniform(2500, 9000)) for kind in range(_AGENTS)}
    now_s, drawn = 0.0, []
    for _ in range(count):
        now_s += chance.expovariate(1.0)
        agent = chance.random() < 1 / 3
        first, kinds = (_CHATS, _AGENTS) if agent else (0, _CHATS)
        kind = first + chance.choices(range(kinds), [1 / (rank + 1) for rank in range(kinds)])[0]
        turns = tuple(
            _turn(chance, number, agent=agent) for number in range(_turn_count(chance, agent))
        )
        drawn.append(Conversation(round(now_s, 2), kind, lengths[kind], turns))
    return drawn


def _turn_count(chance: random.Random, agent: bool) -> int:
    mean = 12 if agent else 2
    return min(40, 1 + int(chance.expovariate(1 / (mean - 0.5))))


def _turn(chance: random.Random, number: int, *, agent: bool) -> Turn:
    think_s = chance.lognormvariate(0.7, 0.8) if agent else chance.lognormvariate(3.2, 0.8)
    asked = chance.lognormvariate(6.0, 0.9) if agent else chance.lognormvariate(3.7, 1.0)
    answered = chance.lognormvariate(4.9, 0.7) if agent else chance.lognormvariate(5.1, 0.8)
    return Turn(round(think_s if number else 0.0, 1), 1 + int(asked), 1 + int(answered))


def save(conversations: list[Conversation], path: Path = FILE) -> None:
    lines = b",\n".join(map(msgspec.json.encode, conversations))
    path.write_bytes(b"[\n" + lines + b"\n]\n")
