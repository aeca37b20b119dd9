"""Choose the held-out text that is shipped: whole documents, at most 65 kB a domain.

    python heldout.py --work DIR --out ../../share/models

writes ``heldout.txt`` (the three domains one after the other) and
``heldout.json`` (which bytes belong to which domain and document).  Training
never saw these documents.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from corpus import DOMAINS

BYTES_EACH = 65_000


def main() -> None:
    """Take documents in the corpus's own (hash) order while they fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    whole = b""
    spans: dict[str, dict[str, object]] = {}
    for domain in DOMAINS:
        begin, names = len(whole), []
        source = args.work / "corpus" / f"heldout-{domain}.jsonl"
        with source.open(encoding="utf-8") as file:
            for line in file:
                document = json.loads(line)
                data = document["text"].encode()
                if len(whole) - begin + len(data) + 1 <= BYTES_EACH:
                    whole += data + b"\n"
                    names.append(document["name"])
        spans[domain] = {"begin": begin, "end": len(whole), "documents": names}
    (args.out / "heldout.txt").write_bytes(whole)
    (args.out / "heldout.json").write_text(json.dumps(spans, indent=1) + "\n")


if __name__ == "__main__":
    main()
