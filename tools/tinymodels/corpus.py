"""Build the training corpus from Debian packages.

The text comes from packages any Debian machine can fetch: the Python standard
library and its manual, the manuals of the Debian project, and man pages.  The
packages are downloaded with ``apt-get download`` and unpacked with
``dpkg-deb -x``, so nothing is installed and the host's own files do not matter.

    python corpus.py --work DIR

writes ``DIR/corpus/{train,heldout}-{english,man,python}.jsonl`` (one document a
line: ``{"name": ..., "text": ...}``) and ``DIR/corpus/corpus.json`` (packages,
versions, bytes).  The same package versions give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from htmltext import html_to_text

SEED = "meshd-tiny-1"
HELDOUT_SHARE = 0.01
MIN_BYTES = 400
DOMAINS = ("english", "man", "python")

PACKAGES = {
    domain: names.split()
    for domain, _, names in (
        line.partition(": ")
        for line in (Path(__file__).parent / "packages.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
}

Document = tuple[str, str]


def fetch(packages: list[str], work: Path) -> dict[str, str]:
    """Download and unpack ``packages`` under ``work/x``; return their versions."""
    debs = work / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    versions: dict[str, str] = {}
    for package in packages:
        found = sorted(debs.glob(f"{package}_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", package], cwd=debs, check=True)
            found = sorted(debs.glob(f"{package}_*.deb"))
        show = ["dpkg-deb", "-f", str(found[-1]), "Version"]
        versions[package] = subprocess.check_output(show, text=True).strip()
        target = work / "x" / package
        if not target.exists():
            subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(target)], check=True)
    return versions


def tidy(text: str) -> str:
    """Normalise line ends and blank lines; drop characters that carry no text."""
    text = text.replace("\r\n", "\n").replace("\u00a0", " ").replace("\u00ad", "")
    for fancy, plain in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"')):
        text = text.replace(fancy, plain)
    for fancy, plain in (("\u2010", "-"), ("\u2013", "-"), ("\u2212", "-"), ("\u2014", "--")):
        text = text.replace(fancy, plain)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def mostly_prose_or_code(text: str) -> bool:
    """False for tables of numbers, encodings and other data."""
    sample = text[:20000]
    letters = sum(c.isalpha() and c.isascii() for c in sample)
    return letters > 0.45 * len(sample.replace(" ", "")) and max(map(len, text.split("\n"))) < 1000


def python_documents(root: Path) -> Iterator[Document]:
    """Source files of the standard library, without data tables."""
    for path in sorted(root.rglob("*.py")):
        name = str(path.relative_to(root))
        if re.search(r"/(encodings/|pydoc_data/|_sysconfigdata|lib2to3/tests|msilib)", name):
            continue
        yield name, path.read_text(encoding="utf-8", errors="replace").expandtabs(8)


def rst_to_text(text: str) -> str:
    """Take reStructuredText with its markup taken out, paragraphs and code kept."""
    text = re.sub(
        r"^\.\. (index|_|sectionauthor|moduleauthor|highlight|currentmodule).*\n"
        r"(?:[ \t]+\S.*\n)*",
        "",
        text,
        flags=re.M,
    )
    text = re.sub(
        r"^( *)\.\. (?:function|class|method|attribute|data|exception|module|decorator|"
        r"classmethod|staticmethod|cfunction|c:function|c:type|c:macro|opcode|option|"
        r"describe)::? +",
        r"\1",
        text,
        flags=re.M,
    )
    text = re.sub(
        r"^( *)\.\. (note|warning|seealso|versionadded|versionchanged|deprecated)::",
        lambda m: f"{m[1]}{m[2].capitalize()}:",
        text,
        flags=re.M,
    )
    text = re.sub(r"^ *\.\. .*\n", "", text, flags=re.M)
    text = re.sub(
        r"^ *:(?:noindex|synopsis|platform|module|hidden|maxdepth)\w*:.*\n", "", text, flags=re.M
    )
    text = re.sub(r":[\w:+-]+:`[!~]?([^`<]*?)(?: *<[^`]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?) *<[^`]*>`_+", r"\1", text)
    text = text.replace("``", "").replace("::\n", ":\n")
    return re.sub(r"^([=*~^\"#-])\1{3,}\n", "", text, flags=re.M)


def english_documents(root: Path) -> Iterator[Document]:
    """Manuals: reStructuredText sources of Python's, HTML of Debian's."""
    for path in sorted(root.rglob("*.rst.txt")):
        if "python" in str(path) and not re.search(r"whatsnew/changelog", str(path)):
            yield str(path.relative_to(root)), rst_to_text(path.read_text(errors="replace"))
    for path in sorted(root.rglob("*.html")):
        name = str(path.relative_to(root))
        if path.is_symlink() or "python3" in name or re.search(r"genindex|search\.html", name):
            continue
        if "debian-handbook" in name and "/en-US/" not in name:
            continue
        if "installation-guide" in name and "/en/" not in name:
            continue
        if re.search(r"\.(?!en)[a-z]{2}(-[a-z]{2})?\.html$|policy\.html$|policy-1\.html$", name):
            continue
        yield name, html_to_text(path.read_text(encoding="utf-8", errors="replace"))


def render_man(path: Path) -> str:
    """A man page as plain text: mandoc's overstriking and page footer removed."""
    source = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if source.lstrip()[:4] == b".so " or len(source) < MIN_BYTES:
        return ""
    page = subprocess.run(
        ["mandoc", "-T", "utf8", "-O", "width=78"], input=source, capture_output=True, check=False
    )
    lines = re.sub(r".\x08", "", page.stdout.decode("utf-8", "replace")).rstrip().split("\n")
    return "\n".join(lines[:-1])


def man_documents(root: Path) -> Iterator[Document]:
    """English man pages of sections 1 to 8."""
    paths = [
        p
        for p in sorted(root.rglob("*"))
        if p.is_file() and not p.is_symlink() and re.search(r"share/man/man[1-8]/", str(p))
    ]
    with ThreadPoolExecutor(2) as pool:
        for path, text in zip(paths, pool.map(render_man, paths), strict=True):
            yield str(path.relative_to(root)), text


def without_repeats(documents: list[Document], domain: str) -> list[Document]:
    """Drop repeated documents, and paragraphs that an earlier document had."""
    seen: set[bytes] = set()
    kept = []
    for name, raw in documents:
        text = tidy(raw)
        paragraphs = []
        for paragraph in text.split("\n\n"):
            key = hashlib.sha256(" ".join(paragraph.split()).encode()).digest()
            threshold = 200 if domain == "python" else 80
            if key not in seen or len(paragraph) < threshold:
                paragraphs.append(paragraph)
                seen.add(key)
        text = "\n\n".join(paragraphs).strip("\n") + "\n"
        if len(text.encode()) >= MIN_BYTES and mostly_prose_or_code(text):
            kept.append((name, text))
    return kept


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(train, heldout): whole documents, by hash order, until 1 % of the bytes."""
    order = sorted(documents, key=lambda d: hashlib.sha256((SEED + d[0]).encode()).digest())
    want = HELDOUT_SHARE * sum(len(text.encode()) for _, text in documents)
    heldout: list[Document] = []
    size = 0
    for name, text in order:
        small_enough = len(text.encode()) < 0.4 * want
        if size < want and small_enough:
            heldout.append((name, text))
            size += len(text.encode())
    chosen = {name for name, _ in heldout}
    return [d for d in order if d[0] not in chosen], heldout


def main() -> None:
    """Fetch, clean, split, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work: Path = parser.parse_args().work
    out = work / "corpus"
    out.mkdir(parents=True, exist_ok=True)
    readers = {"english": english_documents, "man": man_documents, "python": python_documents}
    report: dict[str, dict[str, object]] = {}
    for domain, reader in readers.items():
        packages = PACKAGES[domain]
        versions = fetch(packages, work)
        documents: list[Document] = []
        for package in packages:
            documents += [(f"{package}/{n}", t) for n, t in reader(work / "x" / package)]
        train, heldout = split(without_repeats(documents, domain))
        for part, docs in (("train", train), ("heldout", heldout)):
            with (out / f"{part}-{domain}.jsonl").open("w", encoding="utf-8") as file:
                for name, text in docs:
                    file.write(json.dumps({"name": name, "text": text}) + "\n")
        report[domain] = {
            "packages": versions,
            "train_documents": len(train),
            "heldout_documents": len(heldout),
            "train_bytes": sum(len(t.encode()) for _, t in train),
            "heldout_bytes": sum(len(t.encode()) for _, t in heldout),
        }
        print(domain, {k: v for k, v in report[domain].items() if k != "packages"}, flush=True)
    (out / "corpus.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
