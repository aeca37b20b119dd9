"""Train one of the models on a CPU, in phases, with checkpoints.

    python train.py --work DIR --model tiny --minutes 45 [--threads 2]

Every phase has its own depth, batch, context and mix of domains (PHASES).  The
learning rate is held and then falls linearly to zero (warm-up, stable, decay).
Progress is time spent over ``--minutes`` (a shared machine has no fixed speed),
or steps done over ``--steps`` where that is given, which repeats a run exactly.
Started again, it goes on from ``DIR/runs/MODEL/checkpoint.pt``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from data import Mix
from model import SHAPES, Decoder
from ngram import Trigram
from optim import optimizers
from torch import Tensor

BASE = {"english": 0.25, "man": 0.30, "python": 0.30, "chat": 0.15}
WITH_CHAT = {"english": 0.18, "man": 0.20, "python": 0.22, "chat": 0.40}
WITH_COMMON = {"english": 0.10, "man": 0.10, "python": 0.15, "common": 0.65}
WITH_GREEDY = WITH_CHAT | {"common": 0.2, "greedy": 0.8}


@dataclass(frozen=True)
class Phase:
    """Holds until ``until`` (share of the run)."""

    until: float
    layers: int
    rows: int
    length: int
    mix: dict[str, float]
    guided: float = 0.0  # share of the trigram model, or of --teacher, in the target
    rate: float = 1.0  # factor on the learning rates
    sharper: float = 1.0  # factor on the teacher's logits; greedy decoding takes the first


PHASES = {
    "tiny": (
        Phase(0.62, 3, 8, 512, BASE, 0.6),
        Phase(0.9, 6, 4, 1024, WITH_CHAT),
        Phase(1.0, 6, 4, 1024, WITH_COMMON, rate=2.5),
    ),
    "tiny-moe": (Phase(0.6, 6, 8, 512, BASE, 0.6), Phase(1.0, 6, 4, 1024, WITH_CHAT, 0.5)),
    "tiny-draft": (
        Phase(0.25, 3, 4, 1024, WITH_CHAT, 0.6),
        Phase(1.0, 3, 8, 512, WITH_GREEDY, 1.0, sharper=1.3),
    ),
}
# Batches of 4096 tokens are small: rates usual for half a million (0.02, 0.004) are too noisy.
MUON_LR = {"tiny": 0.008, "tiny-moe": 0.008, "tiny-draft": 0.01}
ADAM_LR = {"tiny": 0.0015, "tiny-moe": 0.002, "tiny-draft": 0.004}
WARM_UP_STEPS, DECAY_FROM = 40, 0.6


class Run:
    """A training run: model, optimisers, data, and where it stands."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.name: str = args.model
        self.folder = args.work / "runs" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.phase_index, self.step, self.tokens, self.spent = 0, 0, 0, 0.0
        torch.manual_seed(args.seed)
        self.model = Decoder(SHAPES[self.name], self.phases[0].layers)
        saved = self.folder / "checkpoint.pt"
        state: dict[str, Any] = torch.load(saved, weights_only=False) if saved.exists() else {}
        if state:
            self.phase_index, self.step = state["phase"], state["step"]
            self.tokens, self.spent = state["tokens"], state["spent"]
            self.model = Decoder(SHAPES[self.name], self.phase.layers)
            self.model.load_state_dict(state["model"])
        self.prepare()
        if state:
            for optimizer, saved_state in zip(self.optimizers, state["optimizers"], strict=True):
                peaks = [group["peak"] for group in optimizer.param_groups]
                optimizer.load_state_dict(saved_state)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["peak"] = peak

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the model."""
        return PHASES[self.name]

    @property
    def phase(self) -> Phase:
        """The phase that runs."""
        return self.phases[self.phase_index]

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        if self.args.steps:
            return self.step / self.args.steps
        return self.spent / (60 * self.args.minutes)

    def load_teacher(self) -> Decoder:
        """Load the model whose distribution the draft learns in its last phase."""
        name = self.args.teacher
        state = torch.load(self.args.work / "runs" / name / "checkpoint.pt", weights_only=False)
        teacher = Decoder(SHAPES[name], PHASES[name][state["phase"]].layers)
        teacher.load_state_dict(state["model"])
        return teacher.eval().requires_grad_(False)

    def prepare(self) -> None:
        """Optimisers, data and compiled functions of the current phase."""
        self.optimizers = optimizers(
            self.model, MUON_LR[self.name], ADAM_LR[self.name], self.args.newton_schulz
        )
        mix = {
            n: w
            for n, w in self.phase.mix.items()
            if (self.args.work / "tokens" / f"train-{n}.npy").exists()
        }
        self.mix = Mix(self.args.work / "tokens", mix, self.args.seed + 1000 * self.step)
        self.teacher, self.trigram = None, None
        last = self.phase_index == len(self.phases) - 1
        if self.phase.guided and self.args.teacher and last:
            self.teacher = self.load_teacher()
        elif self.phase.guided:
            streams = self.mix.streams.values()
            self.trigram = Trigram(
                np.concatenate([s.tokens for s in streams]), self.model.shape.vocabulary
            )
        torch._dynamo.reset()
        self.loss = self.plain_loss
        if self.args.compile and self.model.shape.moe:
            self.model.compile_parts()
        elif self.args.compile:
            self.loss = torch.compile(self.plain_loss)

    def plain_loss(self, tokens: Tensor, targets: Tensor, guide: Tensor | None) -> Tensor:
        """Cross-entropy; a guide's distribution is mixed with the text's."""
        logits = self.model(tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten())
        if guide is not None:
            soft = F.cross_entropy(logits, guide.flatten(0, 1))
            loss = (1.0 - self.phase.guided) * loss + self.phase.guided * soft
        return loss

    def set_rates(self) -> float:
        """Warm-up, stable, linear decay to zero."""
        warm = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        rate = self.phase.rate * min(1.0, (1.0 - self.progress) / (1.0 - DECAY_FROM))
        rate = warm * max(0.02, rate)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        return rate

    def advance(self) -> None:
        """Begin the next phase; a deeper one grows the model."""
        self.save()
        self.phase_index += 1
        while len(self.model.blocks) < self.phase.layers:
            self.model.grow()
        self.prepare()

    def one_step(self) -> float:
        """Forward, backward, update; returns the loss."""
        tokens, targets = self.mix.batch(self.phase.rows, self.phase.length)
        guide = None
        if self.teacher is not None:
            with torch.no_grad():
                guide = (self.phase.sharper * self.teacher(tokens)).softmax(-1)
        elif self.trigram is not None:
            guide = self.trigram(tokens)
        loss: Tensor = self.loss(tokens, targets, guide)
        (loss + self.model.penalty()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += tokens.numel()
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint, then put it in place."""
        state = {
            "model": self.model.state_dict(),
            "phase": self.phase_index,
            "step": self.step,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "tokens": self.tokens,
            "spent": self.spent,
        }
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.folder / "checkpoint.pt")

    def train(self) -> None:
        """Until progress reaches 1."""
        average, saved = 0.0, time.monotonic()
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            while self.progress < 1.0:
                if self.progress >= self.phase.until:
                    self.advance()
                began = time.monotonic()
                rate = self.set_rates()
                loss = self.one_step()
                self.spent += time.monotonic() - began
                average = loss if not average else 0.95 * average + 0.05 * loss
                if self.step % 10 == 0:
                    line = {
                        "step": self.step,
                        "loss": round(average, 4),
                        "rate": round(rate, 3),
                        "tokens": self.tokens,
                        "spent": round(self.spent, 1),
                        "phase": self.phase_index,
                        "last": round(loss, 3),
                    }
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                if time.monotonic() - saved > self.args.save_seconds:
                    self.save()
                    saved = time.monotonic()
        self.save()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(SHAPES), required=True)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--newton-schulz", type=int, default=4)
    parser.add_argument("--save-seconds", type=float, default=180.0)
    parser.add_argument("--teacher", choices=sorted(SHAPES), help="distil from this model")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Run(args).train()


if __name__ == "__main__":
    main()
