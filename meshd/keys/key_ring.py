"""All API keys of a node, to be looked up by what a client sent."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from meshd.keys.key import ApiKey, digest


@dataclass(frozen=True, slots=True)
class KeyRing:
    """:ivar errors: of files that cannot be used, one line each."""

    by_digest: Mapping[bytes, ApiKey] = field(default_factory=lambda: MappingProxyType({}))
    errors: tuple[str, ...] = ()

    @property
    def configured(self) -> bool:
        """Whether somebody meant there to be keys: a file that is broken just now counts too."""
        return bool(self.by_digest or self.errors)

    @property
    def names(self) -> list[str]:
        return [key.name for key in self.by_digest.values()]

    def find(self, key: str) -> ApiKey | None:
        """The key that a client sent, None when it is none of ours.

        How long it takes says nothing of the keys: what is compared are hashes, which nobody can
        choose byte by byte.
        """
        sent = digest(key)
        found = self.by_digest.get(sent)
        return found if found is not None and hmac.compare_digest(found.digest, sent) else None


def ring(keys: Iterable[ApiKey], errors: Iterable[str] = ()) -> KeyRing:
    """Of keys in the order of their files: of two with one name or hash the first counts."""
    by_digest: dict[bytes, ApiKey] = {}
    names: dict[str, ApiKey] = {}
    said = [*errors]
    for key in keys:
        if before := names.get(key.name):
            said.append(f"{key.place}: the key {key.name!r} is there already, at {before.place}")
        elif before := by_digest.get(key.digest):
            said.append(f"{key.place}: {key.name!r} has the same key as {before.name!r}")
        else:
            names[key.name] = by_digest[key.digest] = key
    return KeyRing(MappingProxyType(by_digest), tuple(said))
