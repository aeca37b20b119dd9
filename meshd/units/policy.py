"""The edge of the allow-list: what root's configuration allows, and what really lies on disk."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import msgspec

from meshd.config.load import parse_layers, read_files
from meshd.config.settings import Config
from meshd.errors import UserError
from meshd.exposure import narrowed
from meshd.files import write_atomically
from meshd.keys.key_folder import read_keys
from meshd.paths import Paths, shipped
from meshd.units.allow import Policy, Seen, named
from meshd.units.roots_path import roots_path
from meshd.units.spec import EngineSpec

REMEMBERED = Path("/var/lib/mesh-apply/allowed.json")
# What root tries with `meshd try` counts as root's configuration for as long as it lies here.
TRIAL = Path("/run/mesh-apply/trial.yaml")

_SYSTEM_PROGRAM_DIRS = ("/usr/bin", "/usr/local/bin", "/usr/libexec/*/llama/bin")
_PART = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.gguf$")
_NOWHERE = Path("/nonexistent")


@dataclass(frozen=True, slots=True)
class _Allowed:
    model_dirs: tuple[str, ...]
    sources: tuple[str, ...]
    listen: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    split_ports: int | None = None


def load_policy(
    paths: Paths, *, remembered: Path = REMEMBERED, trial: Path = TRIAL, root: int = 0
) -> tuple[Policy, tuple[str, ...]]:
    """What the configuration allows, and warnings.

    Addresses for other machines only while there are API keys.

    While the configuration is bad, the brain runs the last good one; then the last good policy
    counts too.

    :param remembered: where the last good policy is kept.
    :param trial: root's candidate; what it allows is allowed too.
    :param root: the user id whose files are trusted.
    """
    warnings: tuple[str, ...] = ()

    def real(path: str) -> str:
        return roots_path(path, paths.state, (0, root))

    try:
        allowed = _from_config(_config(paths, root), real)
        _remember(remembered, allowed)
    except UserError as error:
        allowed = _recall(remembered, root) or _from_config(Config(), real)
        warnings = (f"what was allowed last still counts, the configuration is bad: {error}",)
    tried = _tried(replace(paths, config=trial), root, real)
    programs = (*_SYSTEM_PROGRAM_DIRS, *_engine_dirs(paths))
    model_dirs = (*allowed.model_dirs, *tried.model_dirs, _shards(paths))
    sources = (*allowed.sources, *tried.sources)
    keyed = read_keys(paths.keys).configured
    listen = frozenset(
        address
        for wanted in (allowed.listen, tried.listen)
        # What the brain asks for before and after the first key, whenever it heard of it.
        for known in {False, keyed}
        for address in narrowed(wanted, keyed=known)
    )
    peers = frozenset((*allowed.peers, *tried.peers))
    ports = frozenset(
        first for first in (allowed.split_ports, tried.split_ports) if first is not None
    )
    return Policy(paths, programs, model_dirs, sources, listen, peers, ports), warnings


def _tried(paths: Paths, root: int, real: Callable[[str], str]) -> _Allowed:
    if paths.config.exists():
        with contextlib.suppress(UserError):
            return _from_config(_config(paths, root), real)
    return _Allowed((), ())


def look(spec: EngineSpec, paths: Paths, *, root: int = 0) -> dict[str, Seen]:
    """What lies at the paths that a spec names."""
    engine = os.path.realpath(paths.state / "engine")
    return {path: _seen(path, engine, root) for path in named(spec)}


def _shards(paths: Paths) -> str:
    """Where the brain puts models with a part of their experts.

    The state folder is root's to move; below it the brain could lay a link to anywhere.
    """
    return str(Path(os.path.realpath(paths.state)) / paths.shards.relative_to(paths.state))


def _engine_dirs(paths: Paths) -> Iterator[str]:
    # Both spellings: argv has the one that the brain knows, the check also wants the real one.
    for engine in sorted({str(paths.state / "engine"), os.path.realpath(paths.state / "engine")}):
        yield glob.escape(engine)
        yield glob.escape(engine) + "/*"


def _config(paths: Paths, root: int) -> Config:
    # Transient drop-ins are the brain's to write: they cannot allow anything.
    files = read_files(replace(paths, transient_config=_NOWHERE))
    for file in files:
        try:
            about = Path(file.path).stat()
        except OSError as error:
            raise UserError(f"{file.path}: {error.strerror}") from error
        if about.st_uid != root or about.st_mode & 0o022:
            raise UserError(
                f"{file.path}: can be written by others than root",
                hint=f"chown root: {file.path}; chmod go-w {file.path}",
            )
    return parse_layers(files).config


def _from_config(config: Config, real: Callable[[str], str]) -> _Allowed:
    sources = (model.source for model in config.models if model.source.startswith("/"))
    return _Allowed(
        # The brain also finds what the installation itself ships.
        model_dirs=tuple(
            real(folder) for folder in (*config.node.model_dirs, str(shipped("models")))
        ),
        sources=tuple(_pattern(source, real) for source in sources),
        listen=config.gateway.listen,
        peers=(config.mesh.listen,),
        split_ports=config.mesh.split_ports,
    )


def _pattern(source: str, real: Callable[[str], str]) -> str:
    """A pattern of real paths for a path or glob in the configuration, with its other parts."""
    parts = PurePosixPath(source).parts
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    pattern = glob.escape(real(str(PurePosixPath(*parts[:plain]))))
    if plain < len(parts):
        pattern = f"{pattern.rstrip('/')}/{'/'.join(parts[plain:])}"
    return _PART.sub(r"-[0-9][0-9][0-9][0-9][0-9]-of-\1.gguf", pattern)


def _remember(path: Path, allowed: _Allowed) -> None:
    data = msgspec.json.encode(allowed)
    try:
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _recall(path: Path, root: int) -> _Allowed | None:
    try:
        if path.stat().st_uid != root:
            return None
        return msgspec.json.decode(path.read_bytes(), type=_Allowed, strict=True)
    except (OSError, msgspec.DecodeError):
        return None


def _seen(path: str, engine: str, root: int) -> Seen:
    try:
        real = Path(path).resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, ValueError, RuntimeError):
        return Seen(path)
    return Seen(str(real), regular, _only_roots(_of_the_engine(real, engine), root))


def _of_the_engine(real: Path, engine: str) -> Iterator[Path]:
    """The path and its folders, up to the engine root, which lies in a folder of the brain's."""
    for path in (real, *real.parents):
        yield path
        if str(path) == engine:
            return


def _only_roots(paths: Iterable[Path], root: int) -> bool:
    try:
        states = [path.lstat() for path in paths]
    except OSError:
        return False
    return all(about.st_uid in (0, root) and not about.st_mode & 0o022 for about in states)
