"""A private apt: the host's mirror, keys and proxies, but another suite and an empty system.

apt resolves the dependencies and checks the signatures; the host's own package state is neither
read nor written, so no privileges are needed. Options: apt.conf(5).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.sources import Source, debian_mirrors, parse_sources, render_source
from meshd.errors import UserError

_DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Dependencies for maintainer scripts and tools that an engine never runs.
_ASSUMED = ("debconf", "wget")
_UPDATE_DEADLINE_S = 180.0
_DOWNLOAD_DEADLINE_S = 900.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Package:
    """A package as apt resolved it. :ivar sha256: of the .deb, from the signed index."""

    name: str
    version: str
    architecture: str
    sha256: str = ""

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


@dataclass(frozen=True, slots=True)
class PrivateApt:
    """:ivar folder: holds the configuration, the package lists and the downloaded .debs."""

    folder: Path
    suite: str

    @property
    def archives(self) -> Path:
        return self.folder / "archives"

    def run(self, *command: str, deadline_s: float = 60.0) -> str:
        """One apt command with this configuration; its standard output.

        :raises UserError: with apt's own first error line.
        """
        environment = {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=deadline_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{' '.join(command[:2])}: no end after {deadline_s:.0f} s",
                hint="is the mirror in /etc/apt reachable? then try again",
            ) from None
        if done.returncode != 0:
            raise UserError(
                f"{' '.join(command[:2])} ({self.suite}): {first_error(done.stdout + done.stderr)}",
                hint="check the mirror in /etc/apt and the free disk space, then try again",
            )
        return done.stdout


def open_private_apt(folder: Path, *, suite: str, progress: Progress) -> PrivateApt:
    """Make or refresh a private apt in `folder`, with the package lists of `suite`.

    Mirrors of the host are tried in turn. Lists from an earlier run serve when none answers.

    :raises UserError: without apt, without a Debian mirror, or when no mirror answers.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UserError(
            "apt-get or dpkg-deb is not on this machine, and there is no engine",
            hint="put llama-server and ggml-rpc-server of your own on the PATH",
        )
    mirrors = debian_mirrors(_host_sources())
    if not mirrors:
        raise UserError(
            "/etc/apt names no Debian mirror to take the engine from",
            hint="add one to /etc/apt/sources.list.d, or put llama-server on the PATH",
        )
    apt = PrivateApt(folder, suite)
    _prepare(apt)
    problem: UserError | None = None
    for mirror in mirrors:
        progress(f"package lists of {suite} from {mirror.uri}")
        _write_sources(apt, mirror)
        try:
            apt.run(
                *("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"),
                deadline_s=_UPDATE_DEADLINE_S,
            )
        except UserError as error:
            problem = error
            continue
        return apt
    assert problem is not None
    if any((folder / "lists").glob("*_Packages*")):
        progress(f"{problem.message}; going on with the lists of an earlier run")
        return apt
    raise problem


def download(apt: PrivateApt, names: Sequence[str], progress: Progress) -> tuple[Package, ...]:
    """Fetch `names` and all they depend on; every .deb is checked against the signed index.

    :raises UserError: for a package that the suite does not have on this architecture, a failed
        download, or a .deb whose content is not what the index says.
    """
    resolved = parse_simulation(apt.run("apt-get", "-s", "-q", "install", *names))
    progress(f"{len(resolved)} packages into {apt.archives}")
    fetch = ("apt-get", "-q", "-y", "--download-only", "install", *names)
    apt.run(*fetch, deadline_s=_DOWNLOAD_DEADLINE_S)
    sums = _checksums(apt, resolved)
    packages = tuple(
        Package(package.name, package.version, package.architecture, sums[package.name])
        for package in resolved
    )
    # apt takes a file that it finds already there on its size alone.
    wrong = [package for package in packages if not _intact(apt, package)]
    for package in wrong:
        (apt.archives / package.file_name).unlink(missing_ok=True)
    if wrong:
        apt.run(*fetch, deadline_s=_DOWNLOAD_DEADLINE_S)
    for package in wrong:
        if not _intact(apt, package):
            raise UserError(
                f"{apt.archives / package.file_name}: content is not what the index says",
                hint="the mirror is being updated or broken; try again later",
            )
    # apt's own indexes of the lists: 90 MB that are made again in a second.
    for index in apt.folder.glob("*pkgcache.bin"):
        index.unlink(missing_ok=True)
    return packages


def parse_simulation(text: str) -> tuple[Package, ...]:
    """The packages that ``apt-get -s install`` says it would install.

    >>> parse_simulation("Inst zlib1g (1:1.3-3 Debian:testing [amd64])")[0].file_name
    'zlib1g_1%3a1.3-3_amd64.deb'
    """
    lines = re.finditer(r"^Inst (\S+?)(?::\S+)? \((\S+) .*\[(\w+)\]\)", text, re.MULTILINE)
    return tuple(Package(*line.groups()) for line in lines)


def first_error(output: str) -> str:
    r"""The line of apt's output that says what went wrong.

    >>> first_error("Hit:1 x\nE: Unable to locate package y\nE: more")
    'Unable to locate package y'
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("E: ", "Err:", "W: "):
        for line in lines:
            if line.startswith(mark):
                return line.removeprefix(mark)
    return lines[-1] if lines else "no message"


def inherited(dump: str) -> tuple[str, ...]:
    r"""What counts here too of the host's ``apt-config dump``: how to reach a mirror.

    Proxies, certificates and the like; no hooks, pins, languages, or leave to skip signatures.

    >>> inherited('Acquire::http::Proxy "http://p:3142";\nAPT::Get::Yes "1";')
    ('Acquire::http::Proxy "http://p:3142";',)
    """
    reach = re.compile(r'Acquire::(https?|ForceIPv\d)(::\S+)? "[^"]+";')
    return tuple(line for line in dump.splitlines() if reach.fullmatch(line))


def _host_sources() -> list[Source]:
    found: list[Source] = []
    listed = Path("/etc/apt/sources.list")
    parts = sorted(Path("/etc/apt/sources.list.d").glob("*"))
    for path in (listed, *parts):
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found.extend(parse_sources(text, deb822=path.suffix == ".sources"))
    return found


def _prepare(apt: PrivateApt) -> None:
    folder = apt.folder
    for part in ("lists/partial", "archives/partial", "etc/conf", "etc/preferences"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    stanzas = (
        f"Package: {name}\nStatus: install ok installed\nVersion: 9999\nArchitecture: all\n"
        "Multi-Arch: foreign\nMaintainer: none\nDescription: assumed\n"
        for name in _ASSUMED
    )
    (folder / "status").write_text("\n".join(stanzas))
    host = subprocess.run(
        ("apt-config", "dump"), capture_output=True, text=True, timeout=30, check=False
    ).stdout
    own = {
        "Dir": "/",
        "Dir::Etc": folder / "etc",
        "Dir::Etc::parts": folder / "etc/conf",
        "Dir::Etc::main": folder / "etc/none.conf",
        "Dir::Etc::sourcelist": folder / "etc/engine.sources",
        "Dir::Etc::sourceparts": folder / "etc/conf",
        "Dir::Etc::preferences": folder / "etc/none",
        "Dir::Etc::preferencesparts": folder / "etc/preferences",
        "Dir::Etc::trusted": "/etc/apt/trusted.gpg",
        "Dir::Etc::trustedparts": "/etc/apt/trusted.gpg.d",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::State::extended_states": folder / "extended_states",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Log": folder / "log",
        # A frozen mirror's Release file may be past its date; its signature is checked all the
        # same.
        "Acquire::Check-Valid-Until": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "true",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        "APT::Install-Recommends": "false",
        "APT::Install-Suggests": "false",
        "APT::Keep-Downloaded-Packages": "true",
        # The folder may lie where the unprivileged download user cannot go, such as /root.
        "APT::Sandbox::User": "root",
    }
    text = [*inherited(host), *(f'{name} "{value}";' for name, value in own.items())]
    (folder / "apt.conf").write_text("\n".join(text) + "\n")


def _write_sources(apt: PrivateApt, mirror: Source) -> None:
    keyring = _DEBIAN_KEYRING if Path(_DEBIAN_KEYRING).exists() else ""
    stanza = render_source(mirror, suite=apt.suite, keyring=keyring)
    (apt.folder / "etc/engine.sources").write_text(stanza)


def _checksums(apt: PrivateApt, packages: Sequence[Package]) -> dict[str, str]:
    wanted = [f"{package.name}={package.version}" for package in packages]
    sums: dict[str, str] = {}
    name = ""
    for line in apt.run("apt-cache", "show", *wanted).splitlines():
        field, _, value = line.partition(": ")
        if field == "Package":
            name = value
        elif field == "SHA256":
            sums[name] = value
    lacking = [package.name for package in packages if package.name not in sums]
    if lacking:
        raise UserError(f"apt names no SHA-256 for {', '.join(lacking)}", hint="use another mirror")
    return sums


def _intact(apt: PrivateApt, package: Package) -> bool:
    try:
        content = (apt.archives / package.file_name).read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content).hexdigest() == package.sha256
