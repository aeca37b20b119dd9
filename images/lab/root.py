#!/usr/bin/env python3
"""Builds the Debian root that lab nodes boot, in three cached layers, and prints them as JSON.

`base` is what mmdebstrap makes of packages.list (a minute, seldom), `deps` adds meshd's virtual
environment with its dependencies (a minute, when pyproject.toml changes), `meshd` the working copy
itself (seconds, at every change). A node mounts them with overlayfs, topmost first, read-only.

Needs root on a Debian with apt; installs mmdebstrap and systemd-container when they are not there.
Mirror and pip settings are the host's own. Exit status 77: this machine cannot, and it said why.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SUITE = "forky"
# nft is for tests that drop packets.
TOOLS = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nft": "nftables"}
VENV = "/usr/lib/meshd"
BACKEND = "/usr/lib/meshd-build"
# The host's huge pages are not a container's to mount; nor should apt look for a network in a test.
MASKED = ("dev-hugepages.mount", "apt-daily.timer", "apt-daily-upgrade.timer")
KEPT_LAYERS = 3
LAYER_MIN_AGE_S = 2 * 3600.0
UNIT_SUFFIXES = (".service", ".socket", ".path", ".target", ".slice", ".timer", ".mount")


SKIP_STATUS = 77


class CannotBuildError(Exception):
    """Why the lab root was not made. The fault is the working copy's, or the network's."""


class WrongMachineError(CannotBuildError):
    """Why no Debian root can be made on this machine."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Folders for overlayfs' ``lowerdir``, topmost first."""

    meshd: Path
    deps: Path
    base: Path

    @property
    def lowerdir(self) -> str:
        return f"{self.meshd}:{self.deps}:{self.base}"


def obstacle() -> str | None:
    """Why a lab root cannot be built here, or None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("apt-get") is None or not Path("/etc/debian_version").exists():
        return "needs a Debian with apt"
    return None


def ensure(cache: Path = REPOSITORY / ".cache/lab") -> Layers:
    """The three layers, built where they are missing.

    :raises WrongMachineError: not root, no apt, or no Debian archive within reach.
    :raises CannotBuildError: another step failed; its output's end is in the text.
    """
    reason = obstacle()
    if reason:
        raise WrongMachineError(f"the lab root {reason}")
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        try:
            install_tools()
            base = base_layer(cache)
        except CannotBuildError as error:
            raise WrongMachineError(str(error)) from error
        deps = deps_layer(cache, base)
        meshd = meshd_layer(cache, base, deps)
        for kind, kept in (("base", base), ("deps", deps), ("meshd", meshd)):
            prune(cache, kind, kept)
    return Layers(meshd=meshd, deps=deps, base=base)


def install_tools() -> None:
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        say(f"installing {' '.join(missing)}")
        run(["apt-get", "update", "-q"], timeout_s=300)
        run(["apt-get", "install", "-qy", "--no-install-recommends", *missing], timeout_s=300)


def packages() -> list[str]:
    lines = (HERE / "packages.list").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def debian_mirror() -> str:
    """The Debian archive that this machine's own apt uses (not its security or vendor archives)."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]
    for _ in range(2):
        for line in run(command, timeout_s=60).splitlines():
            origin, label, uri = line.split("|", 2)
            if origin == label == "Debian" and uri:
                return uri
        run(["apt-get", "update", "-q"], timeout_s=300)
    raise CannotBuildError("the lab root needs a Debian archive in this machine's apt sources")


def base_layer(cache: Path) -> Path:
    wanted = packages()
    layer = cache / f"base-{digest([SUITE, *MASKED, *sorted(wanted)])}"
    if layer.exists():
        return layer
    say(f"making a Debian {SUITE} root with {len(wanted)} packages")
    with fresh(layer) as tree:
        command = [
            "mmdebstrap",
            "--mode=root",
            "--variant=apt",
            "--quiet",
            # A frozen archive's Release file outlives its date; signatures are still checked.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            f"--include={','.join(wanted)}",
            SUITE,
            str(tree),
            debian_mirror(),
        ]
        run(command, timeout_s=900)
        # Empty, not absent: each node becomes a machine of its own, without a first-boot dialogue.
        (tree / "etc/machine-id").write_text("", encoding="utf-8")
        for unit in MASKED:
            (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
        (tree / "etc/hostname").unlink(missing_ok=True)
        # A plain file, so that the host's can be mounted over it while pip runs.
        (tree / "etc/resolv.conf").unlink(missing_ok=True)
        (tree / "etc/resolv.conf").write_text("", encoding="utf-8")
    return layer


def project() -> dict[str, list[str]]:
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        "dependencies": content["project"]["dependencies"],
        "backend": content["build-system"]["requires"],
    }


def deps_layer(cache: Path, base: Path) -> Path:
    needs = project()
    key = digest([base.name, VENV, *sorted(needs["dependencies"]), *sorted(needs["backend"])])
    layer = cache / f"deps-{key}"
    if layer.exists():
        return layer
    say("installing meshd's dependencies with the root's own Python")
    with fresh(layer) as upper:
        script = f"""
            python3 -m venv {VENV}
            {VENV}/bin/pip install --quiet --target {BACKEND} "${{backend[@]}}"
            {VENV}/bin/pip install --quiet "${{dependencies[@]}}"
        """
        arrays = "\n".join(
            f"{name}=({' '.join(shlex.quote(item) for item in items)})"
            for name, items in needs.items()
        )
        in_root(cache, [base], upper, f"{arrays}\n{script}")
    return layer


def meshd_layer(cache: Path, base: Path, deps: Path) -> Path:
    sources = [REPOSITORY / "pyproject.toml", Path(__file__)]
    for folder in ("meshd", "systemd", "etc", "share"):
        sources += (
            path
            for path in sorted((REPOSITORY / folder).rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        )
    layer = cache / f"meshd-{digest([deps.name, *fingerprints(sources)])}"
    if layer.exists():
        layer.touch()
        return layer
    say("installing the working copy")
    with fresh(layer) as upper:
        script = f"""
            PYTHONPATH={BACKEND} {VENV}/bin/pip install --quiet --no-deps --no-build-isolation \
                --no-index /run/source
            ln -s {VENV}/bin/meshd /usr/bin/meshd
            mkdir -p /usr/share/meshd
            if [ -d {VENV}/share/meshd/models ]; then
                mv {VENV}/share/meshd/models /usr/share/meshd/models
            fi
            if [ -f /run/source/etc/mesh.yaml ]; then
                install -D -m 644 /run/source/etc/mesh.yaml /etc/mesh/mesh.yaml
            fi
        """
        in_root(cache, [deps, base], upper, script)
        install_units(REPOSITORY / "systemd", upper)
    return layer


def install_units(source: Path, tree: Path) -> None:
    """Units, presets, sysusers and tmpfiles to where a package would put them."""
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        if not path.is_file():
            continue
        if inner.parts[0] in ("sysctl.d", "sysusers.d", "tmpfiles.d"):
            target = tree / "usr/lib" / inner
        elif inner.parts[0] in ("system", "system-preset"):
            target = tree / "usr/lib/systemd" / inner
        elif path.suffix in UNIT_SUFFIXES or inner.parts[0].endswith(".d"):
            target = tree / "usr/lib/systemd/system" / inner
        else:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o644)


def in_root(cache: Path, lower: list[Path], upper: Path, script: str) -> None:
    """Run a script in the root made of ``lower``; what it changes lands in ``upper``.

    All mounts are in a namespace of the script's own and go with it. /run is a tmpfs there, holding
    the working copy (/run/source) and whatever local files the host's pip settings name.
    """
    work = upper.with_name(upper.name + ".work")
    merged = upper.with_name(upper.name + ".merged")
    for folder in (work, merged, cache / "pip"):
        folder.mkdir(exist_ok=True)
    binds = {REPOSITORY: "/run/source", cache / "pip": "/run/pip-cache"}
    environment = {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    environment |= {
        name: os.environ[name] for name in os.environ if name.lower().endswith("_proxy")
    }
    for name, value in pip_settings().items():
        words = []
        for word in value.split():
            local = Path(word.removeprefix("file://"))
            if local.is_absolute() and local.exists():
                # An index on disk links to files beside it, so the folder above comes along.
                shown = local.parent if word.startswith("file://") else local
                binds[shown] = f"/run/host{shown}"
                word = word.replace(str(local), f"/run/host{local}", 1)
            words.append(word)
        environment[name] = " ".join(words)
    environment |= {
        "PIP_CACHE_DIR": "/run/pip-cache",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    mounts = [
        "set -eu",
        f"m={shlex.quote(str(merged))}",
        f'mount -t overlay overlay -o {shlex.quote(options)} "$m"',
        'mount -t tmpfs tmpfs "$m/run"',
        'mount --rbind /dev "$m/dev"',
        'mount -t proc proc "$m/proc"',
        'mount --bind /etc/resolv.conf "$m/etc/resolv.conf"',
    ]
    for source, inside in binds.items():
        target = f'"$m"{shlex.quote(inside)}'
        make = f"mkdir -p {target}" if source.is_dir() else f"install -D /dev/null {target}"
        mounts.append(f"{make}; mount --bind {shlex.quote(str(source))} {target}")
    mounts.append('exec chroot "$m" bash -euc "$1"')
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", "\n".join(mounts)]
    try:
        run([*command, "bash", script], timeout_s=600, environment=environment)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        merged.rmdir()


def pip_settings() -> dict[str, str]:
    """The host's pip settings (index, certificates, local wheels) as environment variables."""
    settings: dict[str, str] = {}
    listed = run([sys.executable, "-m", "pip", "config", "list"], timeout_s=60).splitlines()
    # `:env:` wins over files and is listed first.
    for line in reversed(listed):
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        text = ast.literal_eval(value)
        settings["PIP_" + key.upper().replace("-", "_")] = str(text)
    return settings


@contextlib.contextmanager
def fresh(layer: Path) -> Iterator[Path]:
    """A new folder that becomes ``layer`` only when all went well."""
    building = layer.with_name(f"{layer.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    building.chmod(0o755)
    building.rename(layer)


def prune(cache: Path, kind: str, kept: Path) -> None:
    """Drop old layers; a young one may still be mounted by somebody else's nodes."""
    layers = sorted(cache.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for layer in layers[KEPT_LAYERS:]:
        if layer != kept and time.time() - layer.stat().st_mtime > LAYER_MIN_AGE_S:
            shutil.rmtree(layer, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def digest(items: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(items).encode()).hexdigest()[:16]


def fingerprints(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        found = path.stat()
        yield f"{path.relative_to(REPOSITORY)} {found.st_size} {found.st_mtime_ns} {found.st_mode}"


def run(command: list[str], *, timeout_s: float, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise CannotBuildError(f"{command[0]} ended with status {done.returncode}:\n{tail}")
    return done.stdout


def say(text: str) -> None:
    sys.stderr.write(f"lab root: {text}\n")
    sys.stderr.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, default=REPOSITORY / ".cache/lab")
    arguments = parser.parse_args()
    try:
        layers = ensure(arguments.cache.resolve())
    except CannotBuildError as error:
        say(str(error))
        return SKIP_STATUS if isinstance(error, WrongMachineError) else 1
    sys.stdout.write(json.dumps({"lowerdir": layers.lowerdir}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
