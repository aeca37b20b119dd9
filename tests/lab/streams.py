"""Many streams at once through one gateway, and what their clients saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

from tests.lab import inside, mesh
from tests.lab.inside import Answer, Stream
from tests.lab.node import Node, wait

# A conversation is drawn to one of the nodes: so many that all of them to the same is no matter of
# a bad day.
PROMPTS = (
    "Write a Python function.",
    "What does the ls command do?",
    "Write a Python function that reads a file.",
    "Who are you?",
    "What does the grep command do?",
    "Write a Python function that returns the sum of a list.",
    "What does the chmod command do?",
    "What does the tar command do?",
    "What is the json module?",
    "Write a Python function that counts words.",
    "What does the mount command do?",
    "How do I list files?",
)


def text_of(answer: Answer) -> str:
    """What a stream says, without its comments and frames."""
    return mesh.parse_stream(answer.body).text


def comments_of(answer: Answer) -> list[str]:
    return [line for line in answer.body.splitlines() if line.startswith(":")]


def resumed(answer: Answer) -> bool:
    return any(line.endswith("was lost, resuming") for line in comments_of(answer))


@dataclass(frozen=True, slots=True)
class Running:
    """One of many. :ivar prompt: what it was asked."""

    prompt: str
    stream: Stream

    @property
    def begun(self) -> bool:
        return bool(self.stream.data_at)

    @property
    def ended(self) -> bool:
        return self.stream.answer is not None

    @property
    def longest_gap_s(self) -> float:
        """Between two pieces of its text."""
        return max((later - sooner for sooner, later in pairwise(self.stream.data_at)), default=0)


class Streams:
    """So many greedy answers of one model, of `tokens` tokens each, with a few prompts in turn."""

    def __init__(self, node: Node, model: str, count: int, tokens: int) -> None:
        self.all = [
            Running(prompt, Stream(node, model, tokens, 300, prompt=prompt))
            for prompt in islice(cycle(PROMPTS), count)
        ]

    def begun(self) -> list[Running]:
        """Those that have sent text and have not ended."""
        return [one for one in self.all if one.begun and not one.ended]

    def waiting(self) -> list[Running]:
        """Those that have sent no text yet."""
        return [one for one in self.all if not one.begun and not one.ended]

    def under_way(self, *, begun: int, waiting: int = 0, timeout_s: float = 60) -> None:
        """Wait until so many have sent text, while so many have sent none."""
        wait(
            lambda: len(self.begun()) >= begun and len(self.waiting()) >= waiting,
            timeout_s,
            f"{begun} running streams, {waiting} waiting",
            every_s=0.02,
        )

    def results(self, timeout_s: float = 300) -> list[Answer]:
        return [one.stream.result(timeout_s) for one in self.all]

    def wrong(self, texts: dict[str, str]) -> Iterator[str]:
        """What is not as it should be, a line for each: errors, and other texts than these.

        :param texts: of unbroken runs, by prompt.
        """
        for number, one in enumerate(self.all):
            answer = one.stream.result()
            if not answer.good:
                yield f"{number}: {answer} {comments_of(answer)}"
            elif (text := text_of(answer)) != texts[one.prompt]:
                yield f"{number}: {_difference(text, texts[one.prompt])}"


def unbroken(node: Node, model: str, tokens: int) -> dict[str, str]:
    """What a model says to each prompt when nothing happens, and nobody else asks."""
    texts = {}
    for prompt in PROMPTS:
        answer = inside.chat(node, model, tokens=tokens, stream=True, prompt=prompt)
        assert answer.good, str(answer)
        texts[prompt] = text_of(answer)
    return texts


def _difference(text: str, wanted: str) -> str:
    alike = next(
        (at for at, pair in enumerate(zip(text, wanted, strict=False)) if len(set(pair)) > 1),
        min(len(text), len(wanted)),
    )
    return (
        f"{len(text)} characters rather than {len(wanted)}, the same up to {alike}: "
        f"{text[alike - 20 : alike + 40]!r} rather than {wanted[alike - 20 : alike + 40]!r}"
    )
