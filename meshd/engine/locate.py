"""Where the engine's executables are: in an engine root of ours, or installed on the system."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meshd import paths as folders
from meshd.engine.manifest import Manifest, read_manifest
from meshd.errors import UserError
from meshd.paths import Paths

SERVER = "llama-server"
RPC_SERVER = "ggml-rpc-server"
BENCH = "llama-bench"

REQUIRED = (
    SERVER,
    RPC_SERVER,
    "llama-fit-params",
    "llama-imatrix",
    "llama-perplexity",
    BENCH,
)
OPTIONAL = ("llama-gguf-split", "llama-quantize", "llama-tokenize")

# Upstream's own builds call it so; Debian prefixes it with ggml-.
_OTHER_NAMES = {RPC_SERVER: ("rpc-server",)}


_SHARED = folders.SYSTEM.state / "engine"


@dataclass(frozen=True, slots=True)
class Place:
    """One engine as files, before anything is known of what it can do.

    :ivar origin: ``root`` for an engine root of ours, ``debian`` where this system's packages
        hold it, ``system`` for anything else.
    :ivar binaries: (our name, absolute path), in the order of `REQUIRED` and `OPTIONAL`.
    """

    origin: Literal["system", "debian", "root"]
    root: Path
    binaries: tuple[tuple[str, Path], ...]
    manifest: Manifest | None = None

    def binary(self, name: str) -> Path | None:
        return next((path for known, path in self.binaries if known == name), None)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in REQUIRED if self.binary(name) is None)


def engine_root(environment: Mapping[str, str] = os.environ, *, uid: int | None = None) -> Path:
    """Where an engine of ours is installed, one for all nodes of this machine.

    ``MESHD_ENGINE_ROOT`` names it outright; else it lies in the system's state folder, or for
    people without the right to write there in their own data folder (XDG base directories).
    """
    explicit = environment.get("MESHD_ENGINE_ROOT")
    if explicit:
        return Path(explicit).absolute()
    if (os.geteuid() if uid is None else uid) == 0:
        return _SHARED
    data = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return Path(data) / "meshd/engine"


def locate(
    paths: Paths | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    system: Path = Path("/"),
) -> Place | None:
    """The engine to use: the explicit root, else an engine root, else the system's.

    The roots are the one in this node's state folder, this user's, and the machine's.

    :raises UserError: when ``MESHD_ENGINE_ROOT`` names a folder without an engine.
    """
    if explicit := environment.get("MESHD_ENGINE_ROOT"):
        found = in_root(Path(explicit).absolute())
        if found is None:
            raise UserError(
                f"{explicit}: no {SERVER} in this engine root (MESHD_ENGINE_ROOT)",
                hint=f"MESHD_ENGINE_ROOT={explicit} meshd engine install",
            )
        return found
    paths = paths or folders.from_environment(environment)
    for root in (paths.state / "engine", engine_root(environment), _SHARED):
        found = in_root(root.absolute())
        if found is not None:
            return found
    return on_system(environment, system=system)


def require(paths: Paths | None = None, environment: Mapping[str, str] = os.environ) -> Place:
    """Like `locate`, for callers that cannot go on without an engine.

    :raises UserError: when there is none.
    """
    place = locate(paths, environment)
    if place is None:
        raise UserError(f"no {SERVER} on this machine", hint="meshd engine install")
    return place


def in_root(root: Path) -> Place | None:
    """The engine unpacked under `root`, or built or copied there with a ``bin`` folder."""
    found = _search((root / "usr/bin", *_libexec(root), root / "bin", root))
    if SERVER not in found:
        return None
    return Place("root", root, _ordered(found), read_manifest(root))


def on_system(
    environment: Mapping[str, str] = os.environ, *, system: Path = Path("/")
) -> Place | None:
    """The engine that this system has: ``MESHD_ENGINE_PATH``, then PATH, then Debian's folders."""
    named = environment.get("MESHD_ENGINE_PATH", "") + ":" + environment.get("PATH", "")
    listed = (Path(part) for part in named.split(":") if part.startswith("/"))
    found = _search((*listed, system / "usr/bin", *_libexec(system)))
    if SERVER not in found:
        return None
    packaged = (system / "var/lib/dpkg/info/llama.cpp-tools.list").exists()
    debian = packaged and found[SERVER] == system / "usr/bin" / SERVER
    return Place("debian" if debian else "system", system, _ordered(found))


def _libexec(root: Path) -> tuple[Path, ...]:
    # Debian puts the RPC server, "unsupported", below the architecture's triplet.
    return tuple(sorted((root / "usr/libexec").glob("*/llama/bin")))


def _search(where: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in where:
        for name in (*REQUIRED, *OPTIONAL):
            for spelling in (name, *_OTHER_NAMES.get(name, ())):
                path = folder / spelling
                # access() first: it answers no, rather than raise, in folders of other users.
                if name not in found and os.access(path, os.X_OK) and path.is_file():
                    found[name] = path
    return found


def _ordered(found: Mapping[str, Path]) -> tuple[tuple[str, Path], ...]:
    return tuple((name, found[name]) for name in (*REQUIRED, *OPTIONAL) if name in found)
