"""What an engine is: read from its executables once, then from a cache until they change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshd.engine.build import Binary, EngineBuild
from meshd.engine.locate import BENCH, RPC_SERVER, SERVER, Place
from meshd.errors import UserError
from meshd.files import write_atomically

_RUN_DEADLINE_S = 30.0
_RPC_START_DEADLINE_S = 10.0
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class _Cached:
    """:ivar files: (path, size, mtime in ns) of all that the build was read from."""

    format: int
    files: tuple[tuple[str, int, int], ...]
    build: EngineBuild


def describe(place: Place, *, cache: Path | None = None) -> EngineBuild:
    """The facts of the engine at `place`.

    :param cache: a JSON file of ours; by default beside the engine root, and none for an engine
        of the system when this user has no state folder to write to.
    :raises UserError: when llama-server does not run here.
    """
    cache = cache or _default_cache(place)
    files = tuple(_stamp(path) for path in _files(place))
    known = _read(cache) if cache else None
    if known is not None and known.files == files and known.build.origin == place.origin:
        return known.build
    build = _examine(place)
    if cache:
        # A cache that cannot be written costs a second next time, nothing else.
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache, msgspec.json.encode(_Cached(_FORMAT, files, build)))
    return build


def parse_version(text: str) -> tuple[str, int | None]:
    """Version and upstream build number out of ``llama-server --version``.

    >>> parse_version("version: 0.7.0 (build 11669, commit Debian)")
    ('0.7.0', 11669)
    >>> parse_version("version: 6181 (4227c9be4)")
    ('', 6181)
    """
    found = re.search(r"version:\s*(\d+(?:\.\d+)+\S*)\s*\((?:build\s*)?b?(\d+)\b", text)
    if found:
        return found.group(1), int(found.group(2))
    found = re.search(r"version:\s*b?(\d+)\s*\(", text)
    return ("", int(found.group(1))) if found else ("", None)


def parse_rpc_protocol(text: str) -> tuple[int, int, int] | None:
    """The protocol triple in what rpc-server prints as it starts.

    >>> parse_rpc_protocol("Starting RPC server v8.0.0")
    (8, 0, 0)
    """
    found = re.search(r"RPC server v(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def parse_backends(text: str) -> tuple[str, ...]:
    """The ggml backends in ggml's log of loading them, each once, in order.

    >>> parse_backends("load_backend: loaded CPU backend from /x/libggml-cpu-haswell.so")
    ('CPU',)
    """
    return tuple(dict.fromkeys(re.findall(r"load_backend: loaded (\S+) backend", text)))


def _examine(place: Place) -> EngineBuild:
    server = place.binary(SERVER)
    assert server is not None
    version, build = parse_version(_output(server, "--version"))
    started = _rpc_start(place.binary(RPC_SERVER))
    backends = _backends(place, server, started)
    return EngineBuild(
        origin=place.origin,
        root=str(place.root),
        build=build,
        version=version,
        package=_package_version(place, server),
        ggml=_ggml_version(place, server),
        rpc_protocol=parse_rpc_protocol(started),
        binaries=tuple(Binary(name, str(path), _sha256(path)) for name, path in place.binaries),
        backends=backends,
        help_text=_output(server, "--help", only_stdout=True),
    )


def _backends(place: Place, server: Path, started: str) -> tuple[str, ...]:
    """The backends that any of the engine's programs says it loads.

    llama-server writes its log from a thread of its own and loses the end of it one time in twelve;
    llama-bench writes at once, but another program may lie in another folder.
    """
    texts = [_output(server, "-v", "--list-devices"), started]
    bench = place.binary(BENCH)
    if bench is not None:
        with contextlib.suppress(UserError):
            texts.insert(0, _output(bench, "--list-devices"))
    return parse_backends("\n".join(texts))


def _output(program: Path, *arguments: str, only_stdout: bool = False) -> str:
    try:
        done = subprocess.run(
            (str(program), *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RUN_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"{program} {' '.join(arguments)}: {error}", hint="meshd engine install"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{program} {' '.join(arguments)}: exit {done.returncode}: {last}",
            hint="meshd engine install --root DIR brings one that runs here",
        )
    return done.stdout if only_stdout else done.stdout + done.stderr


def _rpc_start(program: Path | None) -> str:
    """What rpc-server prints as it starts, on a loopback port of ours, for a moment.

    Nobody connects to it, so nothing is asked of its protocol. Its output goes to a
    pseudo-terminal, since older builds hold it back from a pipe.
    """
    if program is None:
        return ""
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ours, theirs = _output_pair()
        try:
            child = subprocess.Popen(
                (str(program), "-H", "127.0.0.1", "-p", str(port)),
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                # Its cache folder needs a HOME (ggml crashes without).
                env={"HOME": "/nonexistent", **os.environ},
            )
        except OSError:
            os.close(ours)
            os.close(theirs)
            return ""
        os.close(theirs)
        try:
            text = _read_until(ours, lambda text: parse_rpc_protocol(text) is not None)
        finally:
            child.kill()
            child.wait()
            os.close(ours)
        if parse_rpc_protocol(text):
            return text
    return text


def _output_pair() -> tuple[int, int]:
    try:
        return pty.openpty()
    except OSError:  # no /dev/pts in this container; newer builds print to a pipe just as well
        return os.pipe()


def _read_until(descriptor: int, enough: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + _RPC_START_DEADLINE_S
    text = ""
    while not enough(text) and (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # EIO: the other end of the pseudo-terminal is closed
            break
        if not piece:
            break
        text += piece.decode(errors="replace")
    return text


def _package_version(place: Place, server: Path) -> str:
    if place.manifest is not None:
        return place.manifest.packages.get("llama.cpp-tools", "")
    if place.origin != "debian":
        return ""
    asked = ("dpkg-query", "-W", "-f", "${Version}", "llama.cpp-tools")
    done = subprocess.run(
        asked, capture_output=True, text=True, timeout=_RUN_DEADLINE_S, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _ggml_version(place: Place, server: Path) -> str:
    # The library's full file name carries it: libggml-base.so.0.27.0.
    roots = [server.resolve().parent, server.resolve().parent.parent / "lib"]
    folders = [*roots, *sorted((place.root / "usr/lib").glob("*-linux-*"))]
    for folder in folders:
        for path in sorted(folder.glob("libggml-base.so.*.*.*")):
            return path.name.removeprefix("libggml-base.so.")
    return ""


def _files(place: Place) -> Iterable[Path]:
    yield from (path for _, path in place.binaries)
    libraries = place.root / "usr/lib"
    yield from sorted(libraries.glob("*-linux-*/libggml-base.so.*"))
    yield from sorted(libraries.glob("*-linux-*/llama/lib*.so"))
    yield from sorted(libraries.glob("*-linux-*/ggml/backends*/*.so"))


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return (str(path), status.st_size, status.st_mtime_ns)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _default_cache(place: Place) -> Path:
    if place.origin == "root" and place.manifest is not None:
        return place.root.parent / f"{place.root.name}-build.json"
    if os.geteuid() == 0:
        return Path("/var/lib/mesh/engine-build.json")
    data = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(data) / "meshd/engine-build.json"


def _read(cache: Path) -> _Cached | None:
    try:
        known = msgspec.json.decode(cache.read_bytes(), type=_Cached)
    except (OSError, msgspec.DecodeError):
        return None
    return known if known.format == _FORMAT else None
