"""What `meshd experts` is asked for: a mixture's files, a ranking of it, texts, and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshd.errors import UserError
from meshd.experts import ranking_file
from meshd.experts.anatomy import Anatomy, UndividableError, anatomy
from meshd.experts.most_chosen import most_chosen
from meshd.experts.ranking import Ranking, RankingError, Selection
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import SPLIT_NAME, read_facts, read_headers
from meshd.models.metadata import Metadata

# As in the configuration (config/mesh.schema.json).
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_KEEP = re.compile(r"(\d{1,9})|(\d{1,3}(?:\.\d{1,6})?) ?%")
_NODE = re.compile(r"(?:([\w.-]{1,64})=)?(\d{1,9})")
NODES_MAX = 64


@dataclass(frozen=True, slots=True)
class Mixture:
    """A model whose experts can be divided.

    :ivar files: all of its parts, in order, absolute.
    """

    files: tuple[str, ...]
    anatomy: Anatomy
    fingerprint: str

    @property
    def name(self) -> str:
        return Path(self.files[0]).name

    @property
    def stem(self) -> str:
        """Its name without what numbers the parts."""
        split = SPLIT_NAME.fullmatch(self.name)
        return split["stem"] if split else Path(self.name).stem


def mixture(path: Path) -> Mixture:
    """:raises UserError: it cannot be read, or no shard can be made of it; says why."""
    files, headers = read_headers(path)
    values = headers[0].metadata
    metadata = Metadata(files[0], values, str(values.get("general.architecture", "")))
    try:
        found = anatomy(metadata, [one for header in headers for one in header.tensors])
    except UndividableError as error:
        raise UndividableError(f"{path}: {error.message}", hint=error.hint) from None
    if found is None:
        raise UndividableError(f"{path}: it has no routed experts")
    read_facts(path)  # whatever else an engine needs
    return Mixture(tuple(str(file) for file in files), found, fingerprint(files))


def ranking_of(model: Mixture, path: Path) -> Ranking:
    """:raises UserError: it cannot be read, or is not this model's."""
    try:
        return ranking_file.read(path, fingerprint=model.fingerprint, experts=model.anatomy.counted)
    except RankingError as error:
        raise UserError(str(error), hint=f"meshd experts rank {model.name} makes one") from None


def kept_of(text: str, model: Anatomy) -> int:
    """Experts of each layer: ``12``, or ``75%`` of them, to the nearest that is possible.

    :raises UserError: no number, or none that can be kept.
    """
    said = _KEEP.fullmatch(text.strip())
    if said is None or (said[2] and float(said[2]) > 100):
        raise UserError(f"--keep: {text!r} is no number of experts", hint="as 12 or 75%")
    if said[1]:
        kept = int(said[1])
    else:
        kept = round(float(said[2]) / 100 * model.experts / model.step) * model.step
    if kept % model.step or not model.least <= kept <= model.experts:
        steps = f" in steps of {model.step}" if model.step > 1 else ""
        raise UserError(
            f"--keep: of its {model.experts} experts a layer {model.least} to {model.experts} "
            f"can be kept{steps}, not {kept}"
        )
    return kept


def selection_of(model: Anatomy, ranking: Ranking, kept: int) -> Selection:
    """The most chosen of each layer, and something in blocks that nothing counts."""
    return model.complete(most_chosen(ranking, kept, model.groups))


def nodes_of(text: str) -> dict[str, int]:
    """Experts that nodes have room for: ``12,10,8``, or ``ann=12,bob=10``.

    :raises UserError: something else.
    """
    found: dict[str, int] = {}
    pieces = text.split(",")
    if len(pieces) > NODES_MAX:
        raise UserError(f"--nodes: {len(pieces)} of them, at most {NODES_MAX} can be planned for")
    for number, piece in enumerate(pieces, 1):
        said = _NODE.fullmatch(piece.strip())
        if said is None:
            raise UserError(f"--nodes: {piece.strip()!r} is no number of experts", hint="12,10,8")
        # With zeros, since nodes are sorted by their names.
        name = said[1] or f"node{number:0{len(str(len(pieces)))}}"
        if name in found:
            raise UserError(f"--nodes: {name} is there twice")
        found[name] = int(said[2])
    return found


def own_texts(said: Sequence[str]) -> Mapping[str, str]:
    """Paths by domain, of ``--text contracts=PATH``. :raises UserError: not said so."""
    found: dict[str, str] = {}
    for one in said:
        domain, equals, path = one.partition("=")
        if not (equals and path and _DOMAIN.fullmatch(domain)):
            raise UserError(f"--text: {one!r} is no kind of text and its file", hint="notes=a.txt")
        if domain in found:
            raise UserError(f"--text: {domain} is there twice")
        found[domain] = str(Path(path).absolute())
    return found
