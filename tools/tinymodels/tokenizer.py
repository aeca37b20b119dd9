"""Train the byte-level BPE tokenizer that all three models share, and tokenise.

    python tokenizer.py --work DIR

writes ``DIR/tokenizer.json`` and ``DIR/tokens/{train,heldout}-DOMAIN.npy``
(uint16, each document followed by ``<|endoftext|>``).  Words are cut by GPT-2's
expression, which llama.cpp knows as pre-tokenizer "gpt-2", so that both cut
alike (Radford et al., "Language Models are Unsupervised Multitask Learners",
2019; byte-pair encoding: Sennrich et al., arXiv:1508.07909).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus import DOMAINS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL = [END_OF_TEXT, IM_START, IM_END, PAD]
EOT_ID, IM_START_ID, IM_END_ID, PAD_ID = range(4)


def documents(path: Path) -> Iterator[str]:
    """The texts of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def train(corpus: Path) -> Tokenizer:
    """Learn merges from equal shares of the domains (deterministic: no sampling)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for domain in DOMAINS:
            budget = 8_000_000
            for text in documents(corpus / f"train-{domain}.jsonl"):
                yield text[:budget]
                budget -= len(text)
                if budget <= 0:
                    break

    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, path: Path) -> np.ndarray:
    """All documents of a file as one array; text never yields special tokens."""
    tokenizer.encode_special_tokens = True
    pieces: list[int] = []
    for encoding in tokenizer.encode_batch_fast(list(documents(path))):
        pieces += encoding.ids
        pieces.append(EOT_ID)
    return np.array(pieces, dtype=np.uint16)


def main() -> None:
    """Train, save, and tokenise both parts of every domain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work: Path = parser.parse_args().work
    tokenizer = train(work / "corpus")
    tokenizer.save(str(work / "tokenizer.json"))
    (work / "tokens").mkdir(exist_ok=True)
    counts = {}
    for domain in DOMAINS:
        for part in ("train", "heldout"):
            tokens = encode(tokenizer, work / "corpus" / f"{part}-{domain}.jsonl")
            np.save(work / "tokens" / f"{part}-{domain}.npy", tokens)
            counts[f"{part}-{domain}"] = len(tokens)
    (work / "tokens" / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
    print(counts)


if __name__ == "__main__":
    main()
