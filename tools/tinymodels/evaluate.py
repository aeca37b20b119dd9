"""Measure the finished GGUFs with the real engine.

    python evaluate.py --models ../../share/models --engine DIR --tokenizer tokenizer.json

DIR holds llama-perplexity, llama-imatrix and llama-server.  Prints one JSON
object: perplexity and bits per byte by domain, how often the draft's tokens were
accepted, expert load and specialisation, and answers to fixed prompts (greedy).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer

MODELS = ("tiny", "tiny-moe", "tiny-draft")
PORT = 19934
THREADS = "1"  # with more, a busy machine spends its time at barriers
QUESTIONS = (
    "What does the ls command do?",
    "What does the chmod command do?",
    "What does the grep command do?",
    "What does os.path.join do?",
    "What is the json module?",
    "Write a Python function that reads a file.",
    "Write a Python function that returns the sum of a list.",
    "Who are you?",
)
OPENINGS = (
    "The package manager",
    "NAME\n       mkdir - ",
    "def parse_args(argv):\n",
    'class Queue:\n    """',
    "The return value of this function is",
    "import os\nimport sys\n\ndef main():\n",
)


def parts(models: Path) -> dict[str, bytes]:
    """The held-out text of each domain, and all of it."""
    whole = (models / "heldout.txt").read_bytes()
    spans = json.loads((models / "heldout.json").read_text())
    return {d: whole[s["begin"] : s["end"]] for d, s in spans.items()} | {"all": whole}


def perplexity(engine: Path, model: Path, text: Path) -> float:
    """Run llama-perplexity, context 512; its last running value is the estimate."""
    command = [engine / "llama-perplexity", "-m", model, "-f", text, "-c", "512", "-t", THREADS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    running = re.findall(r"\[\d+\]([\d.]+),", done.stdout + done.stderr)
    return float(running[-1])  # the final line is left out where its error estimate fails


def expert_counts(engine: Path, model: Path, text: Path, scratch: Path) -> np.ndarray:
    """Choices per layer and expert on a text, [layers, experts], from llama-imatrix."""
    out = scratch / "imatrix.gguf"
    subprocess.run(
        [
            engine / "llama-imatrix",
            "-m",
            model,
            "-f",
            text,
            "-o",
            out,
            "-c",
            "512",
            "-t",
            THREADS,
            "--no-ppl",
        ],
        capture_output=True,
        check=True,
    )
    found = {
        t.name: np.array(t.data).reshape(-1)
        for t in gguf.GGUFReader(out).tensors
        if t.name.endswith("ffn_down_exps.weight.counts")
    }
    return np.stack([found[n] for n in sorted(found, key=lambda n: int(n.split(".")[1]))])


def specialisation(counts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Load per expert, and mutual information between domain and expert, by layer.

    Domains weigh the same; the most the information could be is log2(3) = 1.585 bits.
    """
    joint = np.stack([c / c.sum(1, keepdims=True) for c in counts.values()]) / len(counts)
    load = joint.sum(0)
    domain = joint.sum(2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = joint * np.log2(joint / (domain * load))
    return {
        "load_percent": (100 * load).round(1).tolist(),
        "mutual_information_bits": np.nansum(terms, axis=(0, 2)).round(3).tolist(),
        "top_domain_share": (joint.max(0) / load).round(2).tolist(),
    }


class Server:
    """A llama-server for the time of a with-block."""

    def __init__(self, engine: Path, model: Path, *more: str) -> None:
        self.command = [
            str(engine / "llama-server"),
            "-m",
            str(model),
            "-c",
            "1024",
            "-t",
            THREADS,
            "--host",
            "127.0.0.1",
            "--port",
            str(PORT),
            "--parallel",
            "1",
            *more,
        ]

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1)
                return self
            except OSError:
                time.sleep(0.25)
        raise RuntimeError("llama-server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST JSON, get JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


def samples(engine: Path, model: Path) -> dict[str, dict[str, str]]:
    """Greedy answers and continuations."""
    with Server(engine, model) as server:
        answers = {
            q: server.post(
                "/v1/chat/completions",
                {
                    "messages": [{"role": "user", "content": q}],
                    "temperature": 0,
                    "max_tokens": 120,
                },
            )["choices"][0]["message"]["content"]
            for q in QUESTIONS
        }
        continued = {
            o: server.post(
                "/completion",
                {
                    "prompt": o,
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "seed": 1,
                    "n_predict": 60,
                },
            )["content"]
            for o in OPENINGS
        }
    return {"chat": answers, "continuations": continued}


def acceptance(engine: Path, models: Path, texts: dict[str, bytes]) -> dict[str, Any]:
    """Share of the draft's tokens that tiny accepted, greedy, on held-out openings and chat."""
    result: dict[str, Any] = {}
    with Server(
        engine,
        models / "tiny.gguf",
        "--spec-type",
        "draft-simple",
        "--spec-draft-model",
        str(models / "tiny-draft.gguf"),
        "--spec-draft-n-max",
        "3",
        "--spec-draft-p-min",
        "0",
        "--spec-draft-threads",
        THREADS,
    ) as server:
        for domain in ("english", "man", "python", "chat"):
            drafted = accepted = predicted = 0
            for i in range(8):
                body: dict[str, Any] = {"temperature": 0, "n_predict": 64, "cache_prompt": False}
                if domain == "chat":
                    body |= {
                        "messages": [{"role": "user", "content": QUESTIONS[i]}],
                        "max_tokens": 64,
                    }
                    answer = server.post("/v1/chat/completions", body)
                else:
                    step = len(texts[domain]) // 8
                    prompt = texts[domain][i * step : i * step + 1000].decode("utf-8", "ignore")
                    answer = server.post("/completion", body | {"prompt": prompt})
                timings = answer["timings"]
                drafted += timings.get("draft_n", 0)
                accepted += timings.get("draft_n_accepted", 0)
                predicted += timings["predicted_n"]
            result[domain] = {
                "drafted": drafted,
                "accepted": accepted,
                "predicted": predicted,
                "rate": round(accepted / max(1, drafted), 3),
            }
    return result


def main() -> None:
    """Measure everything, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--only", choices=MODELS, action="append")
    args = parser.parse_args()
    texts = parts(args.models)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    report: dict[str, Any] = {"perplexity": {}, "bits_per_byte": {}, "samples": {}}
    per_byte = {d: len(tokenizer.encode(t.decode()).ids) / len(t) for d, t in texts.items()}
    report["tokens_per_byte"] = {d: round(r, 4) for d, r in per_byte.items()}
    names = args.only or list(MODELS)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for domain, data in texts.items():
            (scratch / domain).write_bytes(data)
        for name in names:
            model = args.models / f"{name}.gguf"
            ppl = {d: perplexity(args.engine, model, scratch / d) for d in texts}
            report["perplexity"][name] = {d: round(p, 2) for d, p in ppl.items()}
            report["bits_per_byte"][name] = {
                d: round(math.log2(p) * per_byte[d], 3) for d, p in ppl.items()
            }
            report["samples"][name] = samples(args.engine, model)
        if "tiny-moe" in names:
            moe = args.models / "tiny-moe.gguf"
            report["experts"] = specialisation(
                {
                    d: expert_counts(args.engine, moe, scratch / d, scratch)
                    for d in texts
                    if d != "all"
                }
            )
    if "tiny-draft" in names:
        report["acceptance"] = acceptance(args.engine, args.models, texts)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
