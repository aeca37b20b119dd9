"""The kinds of text that experts are counted on and shards are measured on."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from meshd.errors import UserError
from meshd.experts.wish import Text
from meshd.files import write_atomically
from meshd.paths import shipped

SHIPPED = ("prose", "code")
# Of each half so much is taken at most; counting and measuring use the first part of it.
HALF_BYTES = 128 * 1024
LEAST_BYTES = 64 * 1024
MOST_BYTES = 16 << 20
# About two of the chunks of 512 tokens that both tools read a text in.
BLOCK_BYTES = 4096
_FILES_MAX = 256


def texts_of(calibration: Iterable[tuple[str, str]], folder: Path) -> tuple[Text, ...]:
    """The shipped kinds and the user's own. Blocking.

    A user's file is cut at the ends of paragraphs or lines into blocks, which go to ranking and to
    measuring by turns; of a large one some are taken from all of it. A kind of a shipped one's name
    takes its place.

    :param calibration: name and absolute path of each, as in `ModelSettings.calibration`.
    :param folder: where the halves are written, named by their content.
    :raises UserError: a file is missing, no text, too short or too large.
    :raises OSError: the folder cannot be written.
    """
    own = {domain: _halves(domain, Path(path), folder) for domain, path in calibration}
    known = {domain: _shipped(domain) for domain in SHIPPED if domain not in own}
    return tuple((known | own)[domain] for domain in (*known, *sorted(own)))


def calibration_digest(texts: Sequence[Text]) -> str:
    """SHA-256 over the files that experts are counted on; `Ranking.calibration` of their ranking.

    :raises OSError: one cannot be read.
    """
    return digest_of([Path(text.ranks) for text in texts])


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, in this order. :raises OSError: one cannot be read."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _shipped(domain: str) -> Text:
    ranks, measures = (
        shipped("calibration", f"{domain}.{part}.txt") for part in ("ranks", "measures")
    )
    for path in (ranks, measures):
        if not path.is_file():
            raise UserError(f"{path}: a text that meshd ships is not there", hint="install it anew")
    return Text(domain, str(ranks), str(measures))


def _halves(domain: str, path: Path, folder: Path) -> Text:
    place = f"calibration {domain}: {path}"
    blocks = _blocks(_content(path, place))
    most = 2 * HALF_BYTES // BLOCK_BYTES
    if len(blocks) > most:
        blocks = [blocks[one * len(blocks) // most] for one in range(most)]
    folder.mkdir(parents=True, exist_ok=True)
    ranks = _written(domain, "ranks", b"".join(blocks[0::2]), folder)
    measures = _written(domain, "measures", b"".join(blocks[1::2]), folder)
    _forget_oldest(folder)
    return Text(domain, str(ranks), str(measures))


def _content(path: Path, place: str) -> bytes:
    needed = f"at least {LEAST_BYTES // 1024} KiB of plain text are needed"
    try:
        # A pipe or a device would be waited for.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{place}: this is no file", hint=needed)
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or error}", hint=needed) from error
    if len(data) > MOST_BYTES:
        raise UserError(
            f"{place}: more than {MOST_BYTES >> 20} MiB", hint="a part of it says as much"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: not UTF-8 at byte {error.start}", hint="iconv -t UTF-8 converts it"
        ) from None
    if "\0" in text:
        raise UserError(f"{place}: this is no text, it has NUL characters", hint=needed)
    # Blank space is no text, however much of it there is.
    real = len("".join(text.split()).encode())
    if len(text.encode()) < LEAST_BYTES or real < LEAST_BYTES // 2:
        short = "empty" if not real else f"only {len(text.encode()) / 1024:.1f} KiB"
        raise UserError(f"{place}: {short}", hint=needed)
    return text.encode()


def _blocks(data: bytes) -> list[bytes]:
    """Of about `BLOCK_BYTES` each, cut where a paragraph ends, else a line, a word, a character."""
    blocks = []
    begin = 0
    while begin < len(data):
        end = min(begin + BLOCK_BYTES, len(data))
        if end < len(data):
            end = _cut(data, begin + BLOCK_BYTES // 2, end)
        blocks.append(data[begin:end])
        begin = end
    return blocks


def _cut(data: bytes, least: int, most: int) -> int:
    for mark in (b"\n\n", b"\n", b" "):
        found = data.rfind(mark, least, most)
        if found >= 0:
            return found + len(mark)
    while data[most] & 0xC0 == 0x80:  # within a character
        most -= 1
    return most


def _written(domain: str, part: str, data: bytes, folder: Path) -> Path:
    path = folder / f"{domain}.{hashlib.sha256(data).hexdigest()[:16]}.{part}.txt"
    if path.is_file() and path.read_bytes() == data:
        os.utime(path)
    else:
        write_atomically(path, data)
    return path


def _forget_oldest(folder: Path) -> None:
    """What was cut from files as they once were."""
    files = sorted(folder.glob("*.txt"), key=lambda one: one.stat().st_mtime, reverse=True)
    for one in files[_FILES_MAX:]:
        one.unlink(missing_ok=True)
