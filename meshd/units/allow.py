"""Whether the root hand may do what the brain asks for. Pure: what was seen on disk is passed in.

The brain is not trusted here: it talks to the network, this side commands systemd as root. An
engine may only be one of the engine's programs, with known flags, reading files that the
configuration (root's own) allows. A guard is meshd itself, with the ports that are for splits.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from meshd.paths import Paths
from meshd.units import allow_split, flags
from meshd.units.allow_split import SplitRules
from meshd.units.flags import Value
from meshd.units.spec import ATTEMPTS_MOST, EngineKind, EngineSpec

# Of splits a node lends to 32 at most, with two units each.
MAX_ENGINES = 160
_MAX_WORDS = 512
_MAX_WORD = 8192
_MAX_READS = 1024
_MAX_ENVIRONMENT = 32

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?|all|auto|max")
_WORD = re.compile(r"[A-Za-z0-9_.,:;=+*/\\()\[\]{}|?^$<>-]{1,4096}")
# Where rpc-server looks for tensors that it need not be sent.
_CACHE = "LLAMA_CACHE"
_PROGRAMS = {
    EngineKind.LLAMA: frozenset(["llama-server"]),
    EngineKind.RPC: frozenset(["ggml-rpc-server", "rpc-server"]),
}
_FLAGS = {EngineKind.LLAMA: flags.LLAMA, EngineKind.RPC: flags.RPC}


@dataclass(frozen=True, slots=True)
class Seen:
    """What lies at a path.

    :ivar real: without symbolic links.
    :ivar regular: a regular file that exists.
    :ivar roots_own: it, and every folder of the engine that it is in, belong to root and can be
        written by nobody else.
    """

    real: str
    regular: bool = False
    roots_own: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What root allows.

    :ivar program_dirs: patterns of folders that hold the engine's programs.
    :ivar model_dirs: folders without symbolic links; all below may be read.
    :ivar sources: patterns of single files without symbolic links.
    :ivar listen: addresses on which the gateway may listen; ``peers`` for other nodes.
    :ivar split_ports: the first of each run of ports that split models may use.
    """

    paths: Paths
    program_dirs: tuple[str, ...]
    model_dirs: tuple[str, ...]
    sources: tuple[str, ...] = ()
    listen: frozenset[str] = frozenset()
    peers: frozenset[str] = frozenset()
    split_ports: frozenset[int] = frozenset()

    @property
    def split_rules(self) -> SplitRules:
        hosts = frozenset(address.rpartition(":")[0] for address in self.peers)
        return SplitRules(self.paths, self.split_ports, hosts)


def named(spec: EngineSpec) -> frozenset[str]:
    """The paths that decide what the engine runs and reads: its program, libraries and files."""
    return frozenset((*spec.argv[:1], *spec.reads, *_library_folders(spec)))


def _library_folders(spec: EngineSpec) -> Iterator[str]:
    for name, value in spec.environment:
        if name in flags.ENVIRONMENT_FOLDERS:
            yield from value.split(":")


def refusals(spec: EngineSpec, policy: Policy, seen: Mapping[str, Seen]) -> tuple[str, ...]:
    """Why this engine may not be started; empty when it may.

    :param seen: for every path in `named`.
    """
    if not _NAME.fullmatch(spec.name):
        # Nothing else is worth saying of a spec whose unit cannot even be named.
        return (f"{spec.name[:80]!r} cannot be an engine's name",)
    return tuple(
        f"{spec.unit}: {why}"
        for why in (
            *_sizes(spec),
            *_program(spec, policy, seen),
            *_arguments(spec, policy),
            *_files(spec, policy, seen),
            *_environment(spec, policy, seen),
        )
    )


def _sizes(spec: EngineSpec) -> Iterator[str]:
    words = (*spec.argv, *spec.reads, *(word for pair in spec.environment for word in pair))
    if len(spec.argv) > _MAX_WORDS or len(spec.reads) > _MAX_READS:
        yield f"{len(spec.argv)} arguments and {len(spec.reads)} files are too many"
    if len(spec.environment) > _MAX_ENVIRONMENT:
        yield f"{len(spec.environment)} variables are too many"
    if any(len(word) > _MAX_WORD for word in (spec.model, *words)):
        yield f"a value of more than {_MAX_WORD} characters"
    if not all(word.isprintable() for word in (spec.model, *words)):
        yield "a value with control characters"
    if spec.memory_max_bytes is not None and spec.memory_max_bytes <= 0:
        yield f"{spec.memory_max_bytes} bytes of memory are no limit"
    if not 0 <= spec.attempt <= ATTEMPTS_MOST:
        yield f"attempt {spec.attempt} is none that is counted"


def _program(spec: EngineSpec, policy: Policy, seen: Mapping[str, Seen]) -> Iterator[str]:
    if not spec.argv:
        yield "no program"
        return
    if spec.kind is EngineKind.GUARD:
        if allow_split.guard_flags(spec) is None:
            yield f"{' '.join(spec.argv[:4])[:200]!r} is not how a guard is started"
        return
    program = spec.argv[0]
    found = seen.get(program, Seen(program))
    for path in (program, found.real):
        if not _in_program_dirs(str(PurePosixPath(path).parent), policy) or _winding(path):
            yield f"{path} is not in a folder of the engine"
            return
    if PurePosixPath(program).name not in _PROGRAMS[spec.kind]:
        yield f"{program} is not a program for a {spec.kind} engine"
    elif not found.regular:
        yield f"{program} is not there"
    elif not found.roots_own:
        yield f"{program} could be replaced by others than root"


def _in_program_dirs(folder: str, policy: Policy) -> bool:
    return any(fnmatch.fnmatchcase(folder, pattern) for pattern in policy.program_dirs)


def _winding(path: str) -> bool:
    return not path.startswith("/") or str(PurePosixPath(path)) != path or ".." in path.split("/")


def _arguments(spec: EngineSpec, policy: Policy) -> Iterator[str]:
    known, words = _FLAGS.get(spec.kind), list(spec.argv[1:])
    if known is None:
        known, words = allow_split.guard_flags(spec), list(spec.argv[4:])
    if known is None:
        return
    given: set[Value] = set()
    while words:
        flag = words.pop(0)
        kind = known.get(flag)
        if kind is None:
            yield f"{flag[:80]!r} is not a flag that the hand knows"
            return
        given.add(kind)
        if kind is Value.NONE:
            continue
        if kind is Value.SWITCH:
            if words and words[0] in ("on", "off", "auto"):
                words.pop(0)
            continue
        if not words:
            yield f"{flag} is followed by nothing, wants {kind.value}"
            return
        value = words.pop(0)
        if not _fits(kind, value, spec, policy):
            yield f"{flag} {value[:200]!r}: not {kind.value} that is allowed"
    if spec.kind is EngineKind.GUARD:
        yield from allow_split.guard_refusals(spec, given)
    elif Value.HOST not in given:
        # The engines' own defaults are not meshd's to rely on.
        yield "--host is missing"


def _fits(kind: Value, value: str, spec: EngineSpec, policy: Policy) -> bool:
    if kind is Value.NUMBER:
        return _NUMBER.fullmatch(value) is not None
    if kind is Value.HOST:
        if spec.kind is EngineKind.RPC:
            return value in ("127.0.0.1", "::1")
        return value == str(policy.paths.engine_socket(spec.name))
    if value.startswith("-"):
        # Were the engine's idea of this flag another one, it would read the value as a flag.
        return False
    if kind is Value.FILE:
        return value in spec.reads
    if kind in allow_split.KINDS:
        return allow_split.fits(kind, value, spec.name, policy.split_rules)
    return kind is Value.TEXT or _WORD.fullmatch(value) is not None


def _files(spec: EngineSpec, policy: Policy, seen: Mapping[str, Seen]) -> Iterator[str]:
    for path in spec.reads:
        found = seen.get(path, Seen(path))
        if _winding(path) or not path.isprintable() or set(path) & set("\\\"'"):
            yield f"{path[:200]!r} is not a path that a unit can name"
        elif not found.regular:
            yield f"{path} is not a file"
        elif not _may_read(found.real, policy):
            yield f"{path} is not in the folders and files that /etc/mesh allows"


def _may_read(real: str, policy: Policy) -> bool:
    parents = {str(parent) for parent in PurePosixPath(real).parents}
    return not parents.isdisjoint(policy.model_dirs) or any(
        # fnmatch's star would cross folders, glob's does not.
        fnmatch.fnmatchcase(real, pattern)
        and ("**" in pattern or pattern.count("/") == real.count("/"))
        for pattern in policy.sources
    )


def _environment(spec: EngineSpec, policy: Policy, seen: Mapping[str, Seen]) -> Iterator[str]:
    for folder in _library_folders(spec):
        found = seen.get(folder, Seen(folder))
        if any(
            _winding(path) or not _in_program_dirs(path, policy) for path in (folder, found.real)
        ):
            yield f"{folder[:200]!r} is not a folder of the engine to take libraries from"
        elif not found.roots_own:
            yield f"{folder}: its libraries could be replaced by others than root"
    for name, value in spec.environment:
        if name in flags.ENVIRONMENT_FOLDERS:
            continue
        if name == _CACHE and spec.kind is EngineKind.RPC:
            if value != str(policy.paths.rpc_cache):
                yield f"{name}={value[:200]!r}: not the folder of tensors"
        elif name not in flags.ENVIRONMENT:
            yield f"{name[:80]!r} is not a variable that the hand knows"
        elif not _WORD.fullmatch(value):
            yield f"{name}={value[:200]!r} is not allowed"
