"""Synthetic conversations from the machine's own data, for the last phase of training.

    python chat.py --work DIR

Sources: the NAME lines of man pages, first sentences of docstrings, short
documented functions of the standard library, and the hand-written functions of
``snippets.py``.  Writes ``DIR/tokens/train-chat.npy`` and ``DIR/corpus/chat.json``
(counts), after corpus.py and tokenizer.py.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from snippets import GREETINGS, SNIPPETS
from tokenizer import EOT_ID, IM_END_ID, IM_START_ID
from tokenizers import Tokenizer

Pair = tuple[str, str]

EVERYDAY = {
    "coreutils",
    "util-linux",
    "bash",
    "grep",
    "sed",
    "gawk",
    "tar",
    "gzip",
    "bzip2",
    "findutils",
    "diffutils",
    "procps",
    "iproute2",
    "iputils-ping",
    "openssh-client",
    "systemd",
    "curl",
    "wget",
    "rsync",
    "apt",
    "dpkg",
    "less",
    "man-db",
    "file",
    "passwd",
    "sudo",
    "mount",
    "hostname",
    "make",
    "zip",
    "unzip",
    "tmux",
    "patch",
    "bc",
}
ASK_COMMAND = (
    "What does the {0} command do?",
    "What does {0} do?",
    "What is {0}?",
    "What is the {0} command for?",
    "Explain the {0} command.",
    "Tell me about {0}.",
    "what does {0} do",
    "Describe the {0} command.",
)
ASK_FUNCTION = (
    "What does the {0} function do?",
    "What does {0} do?",
    "What is {0}?",
    "Explain {0}.",
)
ASK_CODE = (
    "Write a Python function that {0}.",
    "Write a function that {0}.",
    "Write Python code that {0}.",
    "Show me a Python function that {0}.",
    "How do I write a Python function that {0}?",
    "Can you write a Python function that {0}?",
)
COMMON = {
    "apt",
    "apt-get",
    "bash",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "cp",
    "crontab",
    "curl",
    "cut",
    "date",
    "dd",
    "df",
    "diff",
    "dpkg",
    "du",
    "echo",
    "env",
    "fdisk",
    "file",
    "find",
    "free",
    "grep",
    "gzip",
    "head",
    "id",
    "ip",
    "journalctl",
    "kill",
    "less",
    "ln",
    "ls",
    "lsblk",
    "lsof",
    "make",
    "man",
    "mkdir",
    "mkfs",
    "modprobe",
    "mount",
    "mv",
    "nano",
    "passwd",
    "paste",
    "patch",
    "ping",
    "ps",
    "pwd",
    "rm",
    "rmdir",
    "rsync",
    "scp",
    "sed",
    "sha256sum",
    "sleep",
    "sort",
    "ssh",
    "ssh-keygen",
    "stat",
    "su",
    "sudo",
    "systemctl",
    "tail",
    "tar",
    "tee",
    "top",
    "touch",
    "tr",
    "umount",
    "uname",
    "uniq",
    "unzip",
    "uptime",
    "wc",
    "wget",
    "who",
    "whoami",
    "xargs",
    "zip",
}
NOT_VERBS = {
    "overview",
    "debian",
    "system",
    "the",
    "iso",
    "git",
    "linux",
    "groff",
    "openssh",
    "a",
    "file",
    "devlink",
    "configuration",
    "package",
    "floating-point",
    "introduction",
    "terminal",
    "unit",
    "network",
    "automatically",
    "apt",
    "asynchronous",
    "implementation",
    "posix",
    "login",
    "simple",
    "wide-character",
    "kernel",
    "process",
    "per-user",
    "tc",
    "api",
    "dns",
    "virtual",
    "management",
    "formatted",
    "vdpa",
    "gnu",
    "local",
    "rdma",
    "complex",
    "utility",
    "generator",
    "an",
}
SYSTEM = (
    "You are a helpful assistant.",
    "You are tiny, a small language model of meshd.",
    "Answer briefly.",
)


def third_person(phrase: str) -> str:
    """'list directory contents' becomes 'lists directory contents'."""
    verb, _, rest = phrase.partition(" ")
    verbs = [
        v
        if v.endswith("s") and not v.endswith("ss")
        else v[:-1] + "ies"
        if re.search(r"[^aeiou]y$", v)
        else v + "es"
        if re.search(r"(s|x|z|ch|sh|o)$", v)
        else v + "s"
        for v in verb.split("/")
    ]
    rest = re.sub(r"^(and|or) ([a-z]+)", lambda m: f"{m[1]} {third_person(m[2]).strip()}", rest)
    return ("/".join(verbs) + " " + rest).strip()


def describe(name: str, what: str) -> str:
    """One sentence about a command from its whatis line."""
    first = what.split()[0].lower().rstrip(",")
    lowered = what if what[:2].isupper() else what[0].lower() + what[1:]
    looks_like_verb = re.fullmatch(r"[a-z/]+", first) and first not in NOT_VERBS
    if looks_like_verb and not first.endswith(("ion", "or", "er", "ing", "ed", "al", "ic")):
        return f"{name} {third_person(lowered)}."
    return f"{name} is {what if re.match(r'(an?|the) ', lowered) else 'the ' + what}."


def man_pairs(corpus: Path, rng: random.Random) -> Iterator[Pair]:
    """Questions on commands, system calls and library functions."""
    with (corpus / "train-man.jsonl").open(encoding="utf-8") as file:
        pages = [json.loads(line) for line in file]
    for page in pages:
        section = re.search(r"/man(\d)/", page["name"])
        found = re.search(r"^NAME\n\s+(.+?)\n\n", page["text"], re.M | re.S)
        parts = re.split(r" -+ ", " ".join(found[1].split()), maxsplit=1) if found else []
        if not section or len(parts) != 2 or len(parts[1]) > 140:
            continue
        what = parts[1].strip().rstrip(".")
        everyday = page["name"].split("/")[0] in EVERYDAY and section[1] in "18"
        for name in re.split(r",\s*", parts[0])[:3]:
            if section[1] in "18":
                answer = describe(name, what)
                for form in ASK_COMMAND if everyday else rng.sample(ASK_COMMAND, 2):
                    yield form.format(name), answer
                usage = re.search(
                    r"^SYNOPSIS\n\s+(" + re.escape(name) + r"[^\n]*)\n", page["text"], re.M
                )
                if usage and everyday:
                    yield f"How do I use {name}?", f"Usage: {usage[1].strip()}\n{answer}"
                    if not answer.startswith(f"{name} is "):
                        yield f"Which command {answer[len(name) + 1 : -1]}?", f"Use {name}."
            elif section[1] in "23" and rng.random() < 0.5:
                yield rng.choice(ASK_FUNCTION).format(name), describe(name, what)


def first_sentence(docstring: str) -> str:
    """Up to the first full stop of the first paragraph; empty if it is no sentence."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) ", paragraph)[0]
    good = 20 < len(sentence) < 160 and re.match(r"[A-Z]", sentence) and "->" not in sentence
    return sentence if good and sentence.endswith(".") else ""


def python_pairs(corpus: Path, rng: random.Random) -> Iterator[Pair]:
    """Questions on documented objects, and short functions to write."""
    with (corpus / "train-python.jsonl").open(encoding="utf-8") as file:
        sources = [json.loads(line) for line in file]
    for source in sources:
        module = re.sub(r"^.*?/python3\.11/|/__init__|\.py$", "", source["name"]).replace("/", ".")
        try:
            tree = ast.parse(source["text"])
        except SyntaxError:
            continue
        about = first_sentence(ast.get_docstring(tree) or "")
        module = module.replace("posixpath", "os.path")
        if "idlelib" in module:
            continue
        if about:
            yield f"What is the {module} module?", about
            yield f"What does the Python module {module} do?", about
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            sentence = first_sentence(ast.get_docstring(node) or "")
            if not sentence:
                continue
            if node in tree.body and rng.random() < 0.7:
                yield rng.choice(ASK_FUNCTION).format(f"{module}.{node.name}"), sentence
            code = ast.get_source_segment(source["text"], node) or ""
            short = 3 <= code.count("\n") <= 16 and "self" not in code and node.col_offset == 0
            if short and re.match(r"[A-Z][a-z]+ (?!to )", sentence):
                wish = third_person(sentence[0].lower() + sentence[1:].rstrip("."))
                for form in rng.sample(ASK_CODE, 2):
                    yield form.format(wish), f"```python\n{code}\n```"


def snippet_pairs() -> Iterator[Pair]:
    """Hand-written functions under several wordings."""
    for wishes, code in SNIPPETS:
        for wish in wishes:
            for form in ASK_CODE:
                yield form.format(wish), f"```python\n{code.strip()}\n```"
    for questions, answer in GREETINGS:
        for question in questions:
            yield question, answer


def encode(tokenizer: Tokenizer, turns: list[Pair]) -> list[int]:
    """(role, content) turns in the chat template of export.py, then end of text."""
    ids: list[int] = []
    for role, content in turns:
        ids += [IM_START_ID, *tokenizer.encode(f"{role}\n{content}").ids, IM_END_ID]
        ids += tokenizer.encode("\n").ids
    return [*ids, EOT_ID]


def main() -> None:
    """Collect, shuffle, encode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work: Path = parser.parse_args().work
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    rng = random.Random(1)
    groups = {
        "man": list(man_pairs(work / "corpus", rng)),
        "python": list(python_pairs(work / "corpus", rng)),
        "snippets": list(snippet_pairs()) * 2,
    }
    common = [(q, a) for q, a in groups["man"] if set(a.split()[:2]) & COMMON]
    common += [
        (q, a) for q, a in groups["python"] if re.search(r"\b(os\.path\.|(os|json|re) module)", q)
    ] * 3 + groups["snippets"]
    everything = [pair for group in groups.values() for pair in group]
    counts = {name: len(group) for name, group in groups.items()} | {"common": len(common)}
    for name, pairs in (("chat", everything), ("common", common)):
        ids = conversations(tokenizer, pairs, rng)
        np.save(work / "tokens" / f"train-{name}.npy", np.array(ids, dtype=np.uint16))
        counts[f"{name}_tokens"] = len(ids)
    (work / "corpus" / "chat.json").write_text(json.dumps(counts) + "\n")
    print(counts)


def conversations(tokenizer: Tokenizer, pairs: list[Pair], rng: random.Random) -> list[int]:
    """Shuffle questions and answers into conversations of one or two turns."""
    rng.shuffle(pairs)
    ids: list[int] = []
    while pairs:
        turns: list[Pair] = []
        if rng.random() < 0.15:
            turns.append(("system", rng.choice(SYSTEM)))
        for _ in range(2 if rng.random() < 0.15 and len(pairs) > 1 else 1):
            question, answer = pairs.pop()
            turns += [("user", question), ("assistant", answer)]
        ids += encode(tokenizer, turns)
    return ids


if __name__ == "__main__":
    main()
