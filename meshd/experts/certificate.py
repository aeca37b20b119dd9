"""What a shard was measured to lose: a small JSON file beside it.

It holds for the shard's file and for the texts, both by SHA-256, and is measured anew for others.
Not for another build of the engine: builds differ in rounding only (docs/experts.md has figures),
and an update of a package must not cost hours on every node.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from meshd.experts.logits_origin import LogitsOrigin
from meshd.experts.ranking import Selection
from meshd.experts.shard_key import shard_key
from meshd.experts.wish import Shard
from meshd.files import write_atomically
from meshd.quality import Fidelity

VERSION = 2
# 256 layers with all of 512 experts are half of it.
BYTES_MAX = 1 << 20
TEXTS_MAX = 16
_BLOCKS_MAX = 1024
_EXPERTS_MAX = 4096
_RATIO_MAX = 1e9
_KL_MAX = 1e9

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Ids = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, lt=_EXPERTS_MAX)], ...],
    msgspec.Meta(max_length=_EXPERTS_MAX),
]


class CertificateError(ValueError):
    """There is none, or none that can be believed; the message says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Fields as in `wish.Shard`, and:

    :ivar texts: SHA-256 of each text that it was measured on, by the text's domain.
    :ivar logits: the whole model's that it was measured beside, by the text's domain likewise.
    :ivar engine: version of the engine that measured it.
    :ivar tokens: of each text at most.
    """

    key: str
    fingerprint: _Hash
    ranking: _Hash
    shard_sha256: _Sha256
    size_bytes: _Count
    experts: Annotated[int, msgspec.Meta(ge=1, le=_EXPERTS_MAX)]
    experts_all: Annotated[int, msgspec.Meta(ge=1, le=_EXPERTS_MAX)]
    selection: Annotated[tuple[_Ids, ...], msgspec.Meta(max_length=_BLOCKS_MAX)]
    mass: _Share
    least_mass: _Share
    texts: Annotated[Mapping[_Name, _Sha256], msgspec.Meta(min_length=1, max_length=TEXTS_MAX)]
    logits: Annotated[Mapping[_Name, LogitsOrigin], msgspec.Meta(max_length=TEXTS_MAX)]
    engine: Annotated[str, msgspec.Meta(max_length=200)]
    tokens: _Count
    measured: Annotated[tuple[Fidelity, ...], msgspec.Meta(max_length=TEXTS_MAX)]
    version: int = VERSION


class _Version(msgspec.Struct):
    version: int


def encode(certificate: Certificate) -> bytes:
    """:raises CertificateError: it says what cannot be, and nobody would believe it."""
    text = msgspec.json.encode(certificate)
    decode(text, key=certificate.key)
    return text


def decode(text: bytes, *, key: str) -> Certificate:
    """:param key: of the shard that it has to be of.

    :raises CertificateError: it is malformed, or of another version or shard.
    """
    if len(text) > BYTES_MAX:
        raise CertificateError(f"it has more than {BYTES_MAX} bytes")
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != VERSION:
            raise CertificateError(f"it is of version {version}, not {VERSION}")
        found = msgspec.json.decode(text, type=Certificate)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CertificateError(f"it is malformed: {error}") from None
    problem = _problem(found, key)
    if problem:
        raise CertificateError(problem)
    return found


def read(path: Path, *, key: str) -> Certificate:
    """:raises CertificateError: it is not there, or is not to be believed."""
    try:
        with path.open("rb") as file:
            text = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror or error}") from error
    try:
        return decode(text, key=key)
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from None


def write(path: Path, certificate: Certificate) -> None:
    """:raises CertificateError: it says what cannot be. :raises OSError: it cannot be written."""
    write_atomically(path, encode(certificate))


def shard_of(certificate: Certificate, path: Path) -> Shard:
    """:param path: of the shard's file."""
    return Shard(
        key=certificate.key,
        fingerprint=certificate.fingerprint,
        path=str(path),
        size_bytes=certificate.size_bytes,
        sha256=certificate.shard_sha256,
        ranking=certificate.ranking,
        experts=certificate.experts,
        experts_all=certificate.experts_all,
        selection=certificate.selection,
        mass=certificate.mass,
        least_mass=certificate.least_mass,
        measured=certificate.measured,
    )


def _problem(found: Certificate, key: str) -> str:
    """Why it cannot be believed, "" where it can."""
    if found.key != key:
        return f"it is of another shard, {found.key:.64}"
    if shard_key(found.fingerprint, found.ranking, found.selection) != key:
        return "its experts are not those of its shard"
    if not _kept_everywhere(found.selection, found.experts, found.experts_all):
        return f"its layers do not each keep {found.experts} of {found.experts_all} experts"
    if not found.least_mass <= found.mass + 1e-9:
        return "its least layer keeps more than the mean of all"
    domains = [one.domain for one in found.measured]
    if sorted(domains) != sorted(found.texts):
        return "it was not measured on each of its texts once"
    if found.logits.keys() != found.texts.keys():
        return "it does not say for each of its texts whose logits it was measured beside"
    return "" if all(_possible(one) for one in found.measured) else "its figures cannot be"


def _kept_everywhere(selection: Selection, experts: int, experts_all: int) -> bool:
    routed = [ids for ids in selection if ids]
    return bool(routed) and all(
        len(ids) == experts
        and ids[-1] < experts_all
        and all(one < after for one, after in itertools.pairwise(ids))
        for ids in routed
    )


def _possible(one: Fidelity) -> bool:
    return (
        0 <= one.top1 <= 1
        and 0 < one.perplexity_ratio <= _RATIO_MAX
        and 0 <= one.kl <= _KL_MAX
        and math.isfinite(one.perplexity_ratio + one.kl)
    )
