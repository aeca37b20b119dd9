"""Which packages the texts are cut from, and what is taken out of each."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.calibration.novels import novels
from tools.tinymodels.htmltext import html_to_text


@dataclass(frozen=True)
class Document:
    """:ivar group: all of one group go to ranking, or all to measuring."""

    group: str
    name: str
    text: str


Documents = Callable[[Path], Iterator[Document]]


def _pages(glob: str) -> Documents:
    def documents(root: Path) -> Iterator[Document]:
        for path in sorted(root.glob(glob)):
            if not path.is_symlink() and not re.search(r"index|toc|print|search", path.name):
                text = html_to_text(path.read_text(encoding="utf-8", errors="replace"))
                yield Document(path.name, path.name, text)

    return documents


def _files(suffix: str) -> Documents:
    def documents(root: Path) -> Iterator[Document]:
        for path in sorted(root.rglob(f"*{suffix}")):
            name = str(path.relative_to(root))
            if path.is_file() and not path.is_symlink() and not re.search(r"table|min\.js", name):
                yield Document(name, name, path.read_text(encoding="utf-8", errors="replace"))

    return documents


def _novels(root: Path) -> Iterator[Document]:
    for title, segments in novels(next(root.rglob("janeaustenr/data/Rdata.rdb"))):
        for number, segment in enumerate(segments):
            yield Document(title, f"{title}, part {number + 1}", segment)


# By kind of text: package, how often it comes in a round, what is taken of it. None of them is
# among those that the project's own models were trained on (tools/tinymodels/packages.txt).
SOURCES: dict[str, tuple[tuple[str, int, Documents], ...]] = {
    "prose": (
        ("r-cran-janeaustenr", 2, _novels),
        ("sqlite3-doc", 1, _pages("usr/share/doc/sqlite3/*.html")),
        ("rust-doc", 1, _pages("usr/share/doc/rust-doc/html/book/*.html")),
        ("postgresql-doc-15", 1, _pages("usr/share/doc/postgresql-doc-15/html/*.html")),
    ),
    "code": (
        ("python3-jinja2", 2, _files(".py")),
        ("node-express", 1, _files(".js")),
        ("libstb-dev", 1, _files(".h")),
        ("nlohmann-json3-dev", 1, _files(".hpp")),
        ("golang-golang-x-net-dev", 1, _files(".go")),
        ("librust-regex-dev", 1, _files(".rs")),
        ("ruby-rack", 1, _files(".rb")),
        ("lua-penlight", 1, _files(".lua")),
        ("php-symfony-console", 1, _files(".php")),
    ),
}


def fetched(package: str, work: Path) -> tuple[Path, str]:
    """The package unpacked, and its version. :raises subprocess.CalledProcessError: no such."""
    debs, target = work / "debs", work / package
    debs.mkdir(parents=True, exist_ok=True)
    if not any(debs.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "-qq", "download", package], cwd=debs, check=True)
    deb = sorted(debs.glob(f"{package}_*.deb"))[-1]
    if not target.exists():
        subprocess.run(["dpkg-deb", "-x", str(deb), str(target)], check=True)
    version = subprocess.check_output(["dpkg-deb", "-f", str(deb), "Version"], text=True)
    return target, version.strip()
