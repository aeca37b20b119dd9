"""Getting an engine: what is there, else Debian's packages, else forky's in a root of their own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from meshd.engine import apt, locate
from meshd.engine.build import EngineBuild
from meshd.engine.describe import describe
from meshd.engine.manifest import Manifest, read_manifest, write_manifest
from meshd.engine.relocate import find_patchelf, relocate
from meshd.errors import UserError
from meshd.paths import Paths

SUITE = "forky"

# The oldest that speaks the flags which the dialect and the planner rely on (`--fit`).
OLDEST_PACKAGE = "1:0.5.0"

_PACKAGES = ("llama.cpp-tools", "llama.cpp-tools-extra", "libggml0-backend-rpc")

# Pinned to their siblings' versions, so apt must take them, but nothing runs from them.
_NOT_RUN = frozenset({"gcc-16-base", "libc-gconv-modules-extra", "openssl-provider-legacy"})

_NEEDED_BYTES = 300 * 1024 * 1024
_APT_DEADLINE_S = 900.0

Progress = Callable[[str], None]


def backend_packages(gpu_nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Debian's GPU backends worth having: Vulkan wherever the kernel offers a GPU's node.

    CUDA is not in Debian main, and HIP serves only few cards; Vulkan drives them all.
    """
    return ("libggml0-backend-vulkan",) if gpu_nodes else ()


def install(
    paths: Paths | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    root: Path | None = None,
    cache: Path | None = None,
    progress: Progress = lambda line: None,
) -> EngineBuild:
    """Find a complete engine or get one; quick when it is already there.

    :param root: engine root to use or make, whatever else this machine has.
    :param cache: where package lists and .debs are kept, so that another install is fast.
    :raises UserError: no apt, no mirror, no patchelf, wrong architecture, disk full, or an engine
        that does not run here.
    """
    only_root = root is not None or bool(environment.get("MESHD_ENGINE_ROOT"))
    target = root.absolute() if root else locate.engine_root(environment)
    place = _present(target, only_root=only_root, paths=paths, environment=environment)
    if place is not None:
        return describe(place)
    with _one_at_a_time(target, progress):
        place = _present(target, only_root=only_root, paths=paths, environment=environment)
        if place is None and not only_root and os.geteuid() == 0:
            place = _from_running_release(environment, progress)
        if place is None:
            place = _moved(target, progress)
        if place is None:
            place = _into_root(target, cache or target.parent / "engine-apt", progress)
        progress("checking what it can do")
        return describe(place)


def _present(
    target: Path, *, only_root: bool, paths: Paths | None, environment: Mapping[str, str]
) -> locate.Place | None:
    """A complete engine that would be used as things are."""
    place = locate.in_root(target) if only_root else locate.locate(paths, environment)
    if place is None or place.missing:
        return None
    moved = place.manifest is not None and place.manifest.prefix != str(place.root)
    return None if moved else place


@contextlib.contextmanager
def _one_at_a_time(target: Path, progress: Progress) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another `meshd engine install`")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{error.cmd[0]}: no end after {error.timeout:.0f} s",
            hint="try again on a quieter disk",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{target}: disk full", hint="free 300 MB and try again") from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UserError(
                f"{target}: {error.strerror}", hint="choose a folder of yours with --root"
            ) from error
        raise


def _from_running_release(
    environment: Mapping[str, str], progress: Progress
) -> locate.Place | None:
    """Debian's own packages, where this release has them new enough; None where not."""
    if shutil.which("apt-get") is None or not _release_has_it():
        return None
    packages = (*_PACKAGES, *backend_packages(gpu_nodes()))
    progress(f"installing Debian's {', '.join(packages)}")
    done = subprocess.run(
        ("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages),
        env={**environment, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_APT_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        problem = apt.first_error(done.stdout + done.stderr)
        progress(f"apt-get install: {problem}; unpacking into a root of its own instead")
        return None
    return locate.on_system(environment)


def _release_has_it() -> bool:
    policy = subprocess.run(
        ("apt-cache", "policy", _PACKAGES[0]),
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    found = re.search(r"^\s*Candidate: (\S+)", policy, re.MULTILINE)
    if not found or found.group(1) == "(none)":
        return False
    compare = ("dpkg", "--compare-versions", found.group(1), "ge", OLDEST_PACKAGE)
    return subprocess.run(compare, timeout=30, check=False).returncode == 0


def gpu_nodes(devices: Path = Path("/dev")) -> tuple[str, ...]:
    """NVIDIA's cards have no render node where nvidia-drm is not loaded, as on servers."""
    found = (*devices.glob("dri/renderD*"), *devices.glob("nvidia[0-9]*"))
    return tuple(sorted(map(str, found)))


def _moved(target: Path, progress: Progress) -> locate.Place | None:
    """An engine root of ours that was moved or copied here, mended; None where there is none."""
    place = locate.in_root(target)
    if place is None or place.missing or place.manifest is None:
        return None
    progress(f"was made for {place.manifest.prefix}; relocating to {target}")
    relocate(target, prefix=target)
    write_manifest(target, replace(place.manifest, prefix=str(target)))
    return locate.in_root(target)


def _into_root(target: Path, cache: Path, progress: Progress) -> locate.Place:
    find_patchelf()
    if target.exists() and read_manifest(target) is None and any(target.iterdir()):
        raise UserError(
            f"{target}: holds other things than an engine of ours; nothing was changed",
            hint="name an empty or new folder with --root, or remove it",
        )
    free = shutil.disk_usage(target.parent).free
    if free < _NEEDED_BYTES:
        raise UserError(
            f"{target.parent}: {free >> 20} MiB free, {_NEEDED_BYTES >> 20} MiB needed",
            hint="free some space, or choose another folder with --root",
        )
    private = apt.open_private_apt(cache.absolute(), suite=SUITE, progress=progress)
    wanted = (*_PACKAGES, *backend_packages(gpu_nodes()))
    packages = apt.download(private, wanted, progress)
    for left_over in target.parent.glob(f".{target.name}.meshd-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.meshd-new-"))
    try:
        # Engines run as users of their own and must be able to read it.
        fresh.chmod(0o755)
        for package in packages:
            if package.name not in _NOT_RUN:
                _unpack(private.archives / package.file_name, fresh)
        progress(f"relocating to {target}")
        relocate(fresh, prefix=target)
        versions = {package.name: package.version for package in packages}
        write_manifest(fresh, Manifest(str(target), SUITE, versions))
        _swap_in(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    place = locate.in_root(target)
    assert place is not None
    return place


def _unpack(archive: Path, tree: Path) -> None:
    done = subprocess.run(
        ("dpkg-deb", "-x", str(archive), str(tree)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(
            f"{archive.name}: {apt.first_error(done.stderr)}",
            hint=f"free some space, or remove {archive} and try again",
        )


def _swap_in(fresh: Path, target: Path) -> None:
    """Put the new tree in place; if it does not run there, the old one comes back."""
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.meshd-old-"))
    had_one = target.exists()
    if had_one:
        target.replace(aside)
    fresh.replace(target)
    try:
        _check_runs(target)
    except BaseException:
        target.replace(fresh)
        if had_one:
            aside.replace(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_runs(root: Path) -> None:
    place = locate.in_root(root)
    if place is None or place.missing:
        lacking = place.missing if place else (locate.SERVER,)
        raise UserError(
            f"{root}: the packages hold no {', '.join(lacking)}", hint="use another mirror"
        )
    for option in ("--version", "--list-devices"):
        command = (str(place.binary(locate.SERVER)), option)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except OSError as error:
            raise UserError(
                f"{command[0]}: {error.strerror}: wrong architecture, or mounted noexec",
                hint="choose another folder with --root",
            ) from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"{' '.join(command)}: exit {done.returncode}: {last}",
                hint="put llama-server and ggml-rpc-server of your own on the PATH",
            )
    backends = describe(place).backends
    if not {"CPU", "RPC"} <= set(backends):
        raise UserError(
            f"{root}: only these ggml backends load: {', '.join(backends) or 'none'}",
            hint="report this with `meshd engine show --json`",
        )
