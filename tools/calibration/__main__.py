"""Cut the texts that meshd ships for ranking experts and for measuring shards.

    python -m tools.calibration [--out share/calibration] [--work DIR]

Packages are fetched with ``apt-get download`` and unpacked, nothing is installed. Sources come in
rounds, some KB of each, so that any beginning of a text has something of all of them. The same
package versions give the same bytes; ``sources.json`` records them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.calibration.sources import SOURCES, Document, fetched

SEED = "meshd-calibration-1"
PARTS = ("ranks", "measures")
BYTES_EACH = 128 * 1024
EXCERPT_BYTES = {"prose": 5000, "code": 4000}
# A paragraph that was there before is left out: licences, navigation, notices.
REPEATED_BYTES = 60
OUT = Path(__file__).resolve().parents[2] / "share/calibration"


def _order(name: str) -> bytes:
    return hashlib.sha256(f"{SEED} {name}".encode()).digest()


def _tidy(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\u00a0", " ").replace("\u00ad", "")
    return "\n".join(line.rstrip() for line in text.expandtabs(4).split("\n"))


def _mostly_words(text: str) -> bool:
    dense = text.replace(" ", "")
    letters = sum(one.isalpha() and one.isascii() for one in dense)
    return letters > 0.5 * len(dense) and max(map(len, text.split("\n"))) < 1500


def excerpt(document: Document, bytes_most: int, seen: set[bytes]) -> str:
    """Whole paragraphs out of the middle, where no licence is; "" where there is not enough."""
    paragraphs = _tidy(document.text).strip("\n").split("\n\n")
    whole = sum(len(one.encode()) + 2 for one in paragraphs)
    before = min(whole // 4, whole - bytes_most)
    kept: list[str] = []
    size = at = 0
    for paragraph in paragraphs:
        length = len(paragraph.encode()) + 2
        at += length
        key = hashlib.sha256(" ".join(paragraph.split()).encode()).digest()
        new = len(paragraph) < REPEATED_BYTES or key not in seen
        if at > before and size + length <= bytes_most and new and paragraph.strip():
            kept.append(paragraph.strip("\n"))
            size += length
            seen.add(key)
    text = "\n\n".join(kept) + "\n\n"
    return text if len(text.encode()) > bytes_most // 3 and _mostly_words(text) else ""


def _halves(documents: list[Document]) -> dict[str, list[Document]]:
    groups = sorted({one.group for one in documents}, key=_order)
    return {
        part: sorted(
            (one for one in documents if one.group in groups[number::2]),
            key=lambda one: _order(one.name),
        )
        for number, part in enumerate(PARTS)
    }


def _excerpts(documents: list[Document], size: int, seen: set[bytes]) -> Iterator[tuple[str, str]]:
    for document in documents:
        if text := excerpt(document, size, seen):
            yield document.name, text


def main() -> None:
    """Fetch, cut, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calibration-", ignore_cleanup_errors=True) as scratch:
        versions, taken = make(args.out, args.work or Path(scratch))
    said = json.dumps({"packages": versions, "documents": taken}, indent=1, ensure_ascii=False)
    (args.out / "sources.json").write_text(said + "\n", encoding="utf-8")


def make(out: Path, work: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Write the texts. :return: package versions, and the documents of each file, in order."""
    versions: dict[str, str] = {}
    taken: dict[str, list[str]] = {}
    for domain, sources in SOURCES.items():
        seen: set[bytes] = set()
        streams: dict[str, list[tuple[str, int, Iterator[tuple[str, str]]]]] = {
            part: [] for part in PARTS
        }
        for package, times, documents in sources:
            root, versions[package] = fetched(package, work)
            for part, half in _halves(list(documents(root))).items():
                stream = _excerpts(half, EXCERPT_BYTES[domain], seen)
                streams[part].append((package, times, stream))
        for part in PARTS:
            text, names = _rounds(streams[part])
            (out / f"{domain}.{part}.txt").write_text(text, encoding="utf-8")
            taken[f"{domain}.{part}.txt"] = names
    return versions, taken


def _rounds(streams: list[tuple[str, int, Iterator[tuple[str, str]]]]) -> tuple[str, list[str]]:
    text, names = "", []
    came = True
    while came:
        came = False
        for package, times, stream in streams:
            for _ in range(times):
                name, piece = next(stream, ("", ""))
                if piece and len((text + piece).encode()) <= BYTES_EACH:
                    text += piece
                    names.append(f"{package}: {name}")
                    came = True
    return text, names


if __name__ == "__main__":
    main()
