"""What the store knows of one model's tensors: a JSON file of our own, replaced whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from meshd.seeding.tensor_list import SeedTensor

VERSION = 1
MAX_BYTES = 16 << 20
_CACHE_NAME = re.compile(r"[0-9a-f]{16}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """A manifest that cannot be used."""


@dataclass(frozen=True, slots=True)
class Blob:
    """One tensor's content as a file of the cache.

    :ivar cache_name: FNV-1a 64 of the content in hexadecimal, as rpc-server names it.
    :ivar mtime_ns: of the file when it was whole; another one means that somebody wrote to it.
    :ivar used_s: Unix time at which a wish last needed it.
    :ivar verified_s: Unix time at which its SHA-256 was last seen to be right; 0 when that is to
        be seen before it is used.
    """

    cache_name: str
    size_bytes: int
    sha256: str
    mtime_ns: int
    used_s: int
    verified_s: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """:ivar tensors: all that could be cached. :ivar blobs: those that are, by tensor name."""

    fingerprint: str
    model: str
    tensors: tuple[SeedTensor, ...]
    blobs: Mapping[str, Blob] = field(default_factory=dict)
    version: int = VERSION


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest)


def decode(text: bytes) -> Manifest:
    """:raises ManifestError: it is malformed, of another version, or names impossible files."""
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ManifestError(str(error)) from None
    if manifest.version != VERSION:
        raise ManifestError(f"version {manifest.version}, not {VERSION}")
    if not is_fingerprint(manifest.fingerprint):
        raise ManifestError("its fingerprint is none")
    for name, blob in manifest.blobs.items():
        if not _CACHE_NAME.fullmatch(blob.cache_name) or not _SHA256.fullmatch(blob.sha256):
            raise ManifestError(f"the entry of {name} is no file of a cache")
    return manifest


def is_fingerprint(text: str) -> bool:
    """What may be part of a file's name here."""
    return _FINGERPRINT.fullmatch(text) is not None
