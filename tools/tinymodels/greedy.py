"""Text for the draft: what ``tiny`` itself says, greedily, after training windows.

    python greedy.py --work DIR --models ../../share/models --engine DIR --seconds 300

A draft is asked to foresee the target's own text, so it should train on some (Zhou et
al., "DistillSpec", arXiv:2310.08461).  Prompts are 80 to 220 tokens of the training
text, or a question of the conversations.  Writes ``DIR/tokens/train-greedy.npy``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizer import EOT_ID, IM_END_ID
from tokenizers import Tokenizer

PORT = 19935
AT_ONCE, NEW_TOKENS = 32, 100
TEXTS = ("english", "man", "python")


def conversations(tokens: np.ndarray) -> list[np.ndarray]:
    """The conversations of a stream, without what separates them."""
    return [part[part != EOT_ID] for part in np.split(tokens, np.flatnonzero(tokens == EOT_ID))]


class Prompts:
    """Endless prompts: the three texts and the conversations in turn."""

    def __init__(self, work: Path, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        tokens = work / "tokens"
        self.texts = [np.load(tokens / f"train-{name}.npy") for name in TEXTS]
        self.talks = [conversations(np.load(tokens / f"train-{n}.npy")) for n in ("chat", "common")]
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
        self.answer: list[int] = tokenizer.encode("<|im_start|>assistant\n").ids

    def conversation(self) -> list[int]:
        """A conversation up to its last answer."""
        talks = self.talks[int(self.random.integers(2))]
        while True:
            talk = talks[int(self.random.integers(len(talks)))]
            turns = np.flatnonzero(talk == self.answer[0])
            if len(turns) > 1:
                return [int(t) for t in talk[: turns[-1]]] + self.answer

    def prompt(self, index: int) -> list[int]:
        """Tokens of prompt ``index``."""
        kind = index % (len(self.texts) + 1)
        if kind == len(self.texts):
            return [EOT_ID, *self.conversation()]
        text, length = self.texts[kind], int(self.random.integers(80, 220))
        start = int(self.random.integers(len(text) - length))
        return [EOT_ID, *(int(t) for t in text[start : start + length])]


def continued(prompt: list[int]) -> list[int]:
    """The prompt and its greedy continuation."""
    body = {"prompt": prompt, "n_predict": NEW_TOKENS, "temperature": 0, "return_tokens": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/completion",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        new: list[int] = json.load(response)["tokens"]
    ended = len(new) < NEW_TOKENS and new[-1:] != [IM_END_ID]
    return prompt + new + [IM_END_ID] * ended


def main() -> None:
    """Generate for some time, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    prompts, made = Prompts(args.work, args.seed), []
    command = [args.engine / "llama-server", "-m", args.models / "tiny.gguf", "-np", str(AT_ONCE)]
    command += ["-c", str(384 * AT_ONCE), "-t", "1", "--host", "127.0.0.1", "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.25)
        began, index = time.monotonic(), 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while time.monotonic() - began < args.seconds:
                batch = [prompts.prompt(index + i) for i in range(2 * AT_ONCE)]
                index += len(batch)
                for tokens in pool.map(continued, batch):
                    made += tokens
    finally:
        server.terminate()
        server.wait()
    part = args.work / "tokens" / "greedy.part.npy"
    np.save(part, np.array(made, dtype=np.uint16))
    part.replace(args.work / "tokens" / "train-greedy.npy")
    print(f"{len(made)} tokens")


if __name__ == "__main__":
    main()
