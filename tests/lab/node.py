"""A lab node: real systemd as PID 1 of a container, on a throw-away overlay of the lab root."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GATEWAY = "http://127.0.0.1:9337"
CGROUP_PREFIX = "meshd-lab"

# $1 cgroup name, $2 overlay options, $3 mount point, the rest nspawn's arguments. Everything here
# happens in a mount namespace of our own, so the mounts end with the node.
LAUNCH = """
set -eu
umount --recursive /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
mount -t overlay overlay -o "$2" "$3"
shift 3
exec systemd-nspawn "$@"
"""

# Inside: join a cgroup of the container's before running anything, or the command would seem to
# live outside of the container's cgroup tree.
ENTER = """
[ -d /sys/fs/cgroup/lab ] || mkdir -p /sys/fs/cgroup/lab
echo $$ >/sys/fs/cgroup/lab/cgroup.procs
user=$1
shift
[ -z "$user" ] || set -- setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups \
    --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
exec "$@"
"""


class LabError(AssertionError):
    """The lab, or a condition that a test waits for, did not come about in time."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. :ivar status: 0 when there was none; then ``error`` says why."""

    status: int
    body: str
    error: str = ""

    def json(self) -> Any:
        return json.loads(self.body)


def wait(
    condition: Callable[[], T], timeout_s: float, what: str = "", *, every_s: float = 0.2
) -> T:
    """The first true value of a condition.

    :raises LabError: it did not become true in time; the text has its last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            name = what or getattr(condition, "__name__", "a condition")
            raise LabError(f"waited {timeout_s:g} s in vain for {name}; it is {value!r}")
        time.sleep(every_s)


def enter_command(pid: int, argv: Sequence[str], user: str | None = None) -> list[str]:
    enter = ["nsenter", f"--target={pid}", "--all", "sh", "-c", ENTER, "sh"]
    return [*enter, user or "", *argv]


class Node:
    """One booted container; make it with :func:`booted`.

    :ivar pid: of the container's PID 1, as the host sees it.
    :ivar address: on the test's network, "" where it is on none.
    """

    def __init__(
        self, name: str, lowerdir: str, folder: Path, *, arguments: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.pid = 0
        self.address = ""
        self._lowerdir = lowerdir
        self._folder = folder
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._notify: socket.socket | None = None
        for part in ("upper", "work", "root"):
            (folder / part).mkdir(parents=True)
        (folder / "upper").chmod(0o755)  # becomes the mode of the node's /

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_PREFIX}-{os.getpid()}-{self.name}"

    @property
    def console(self) -> Path:
        return self._folder / "console.log"

    def boot(self, timeout_s: float = 60) -> None:
        """Boot and wait until systemd has finished its default target."""
        self.begin_boot()
        self.await_boot(timeout_s)

    def begin_boot(self) -> None:
        """Switch on and return at once; `await_boot` has to follow."""
        options = (
            f"lowerdir={self._lowerdir},upperdir={self._folder / 'upper'},"
            f"workdir={self._folder / 'work'}"
        )
        command = [
            # A test run that dies takes its nodes along: nspawn powers off on SIGTERM.
            *("setpriv", "--pdeathsig", "TERM"),
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", LAUNCH, "sh"),
            *(self.cgroup, options, str(self._folder / "root")),
            f"--directory={self._folder / 'root'}",
            *("--boot", "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes"),
            *("--console=pipe", "--link-journal=no", "--settings=no", "--timezone=off"),
            *(f"--machine={self.name}", f"--hostname={self.name}"),
            *(self._arguments or ("--private-network",)),
        ]
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._notify_path))
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                command,
                env={"PATH": PATH, "NOTIFY_SOCKET": str(self._notify_path)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest; it ends us in good order
            )

    def await_boot(self, timeout_s: float = 60) -> None:
        """Wait until systemd has finished its default target."""
        assert self._notify is not None
        try:
            self._await_ready(self._notify, time.monotonic() + timeout_s)
        finally:
            self._end_boot()

    def _end_boot(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None
            self._notify_path.unlink()

    @property
    def _notify_path(self) -> Path:
        return self._folder / "notify"

    def _await_ready(self, listener: socket.socket, deadline: float) -> None:
        assert self._process is not None
        listener.settimeout(0.5)
        while time.monotonic() < deadline:
            try:
                lines = listener.recv(4096).decode().splitlines()
            except TimeoutError:
                if self._process.poll() is not None:
                    break
                continue
            for line in lines:
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self.pid = int(line.partition("=")[2])
            if "READY=1" in lines:
                return
        raise LabError(f"node {self.name} did not boot; its console:\n{self.console_tail()}")

    def console_tail(self, lines: int = 40) -> str:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        stdin: str | None = None,
        timeout_s: float = 30,
        check: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root or as ``user`` (then without any capability).

        :raises LabError: it took too long, or ``check`` is set and it failed.
        """
        try:
            done = subprocess.run(
                enter_command(self.pid, argv, user),
                env={"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", "TERM": "dumb"}
                | dict(env or {}),
                input=stdin or "",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{' '.join(argv)} took more than {timeout_s:g} s") from error
        if check and done.returncode != 0:
            raise LabError(
                f"{' '.join(argv)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def start(
        self, argv: Sequence[str], *, user: str | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command inside and return at once; the caller ends it."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True} | options
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", "TERM": "dumb"}
        return subprocess.Popen(enter_command(self.pid, argv, user), env=environment, **options)

    def write(self, path: str, text: str, *, mode: int = 0o644, owner: str | None = None) -> None:
        """Write a file as an editor does: a new file, renamed over the old one."""
        script = (
            'mkdir -p "$(dirname "$1")"; cat >"$1.lab-new"; chmod "$2" "$1.lab-new"; '
            '[ -z "$3" ] || chown "$3" "$1.lab-new"; mv "$1.lab-new" "$1"'
        )
        self.run(
            ["sh", "-euc", script, "sh", path, f"{mode:o}", owner or ""], stdin=text, check=True
        )

    def read(self, path: str) -> str:
        return self.run(["cat", path], check=True).stdout

    def wait(
        self,
        condition: Callable[[], T],
        timeout_s: float,
        what: str = "",
        *,
        every_s: float = 0.2,
    ) -> T:
        return wait(condition, timeout_s, what, every_s=every_s)

    def systemctl(
        self, *arguments: str, timeout_s: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.run(["systemctl", "--no-pager", *arguments], timeout_s=timeout_s, check=check)

    def unit(self, name: str) -> dict[str, str]:
        """What `systemctl show` says of a unit."""
        shown = self.systemctl("show", name).stdout
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def main_pid(self, unit: str) -> int:
        """The main process' id inside the node, 0 when there is none."""
        return int(self.systemctl("show", "--value", "--property=MainPID", unit).stdout or 0)

    def active(self, unit: str) -> bool:
        return self.systemctl("is-active", unit, check=False).returncode == 0

    def journal(self, *arguments: str, lines: int = 500) -> str:
        """`journalctl`, newest last; pass ``-u UNIT`` or ``FIELD=value`` to narrow it."""
        command = ["journalctl", "--no-pager", "--quiet", f"--lines={lines}", "--output=cat"]
        self.run(["journalctl", "--sync"])
        return self.run([*command, *arguments]).stdout

    def http(
        self,
        path: str,
        body: Any = None,
        *,
        url: str = GATEWAY,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        unix: str | None = None,
        user: str | None = None,
        timeout_s: float = 30,
    ) -> Reply:
        """One request from inside the node, to the gateway unless told otherwise."""
        command = ["curl", "-sS", "-N", "--max-time", f"{timeout_s:g}", "-w", "\n%{http_code}"]
        if unix:
            command += ["--unix-socket", unix]
        if method:
            command += ["-X", method]
        for name, value in (headers or {}).items():
            command += ["-H", f"{name}: {value}"]
        text = None
        if body is not None:
            text = body if isinstance(body, str) else json.dumps(body)
            command += ["-H", "Content-Type: application/json", "--data-binary", "@-"]
        done = self.run([*command, url + path], stdin=text, user=user, timeout_s=timeout_s + 10)
        content, _, status = done.stdout.rpartition("\n")
        return Reply(int(status or 0), content, done.stderr.strip())

    def reboot(self, timeout_s: float = 60) -> None:
        """A real reboot: systemd goes down in order, /run is lost, the disk stays."""
        assert self._process is not None
        self.systemctl("reboot", check=False)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"node {self.name} does not go down:\n{self.console_tail()}") from error
        remove_cgroup(self.cgroup)
        self.boot(timeout_s)

    def pull_the_plug(self) -> None:
        """End every process at once, without a goodbye; the disk stays for `boot`."""
        os.kill(self.pid, signal.SIGKILL)  # PID 1: takes all of its namespace along

    def power_lost(self, timeout_s: float = 10) -> None:
        """Wait until nothing of the node is left after `pull_the_plug`."""
        assert self._process is not None
        self._process.wait(timeout_s)
        remove_cgroup(self.cgroup)

    def freeze(self, *, frozen: bool) -> None:
        """Stop every process of the node where it stands, or let all go on."""
        mount = cgroup2()
        assert mount is not None
        top = mount / self.cgroup
        (top / "cgroup.freeze").write_text("1" if frozen else "0")
        wanted = f"frozen {int(frozen)}"
        wait(lambda: wanted in (top / "cgroup.events").read_text(), 10, wanted, every_s=0.01)

    def close(self) -> None:
        """Switch off and leave nothing: no process, mount, cgroup or file of this node."""
        self._end_boot()
        with contextlib.suppress(ProcessLookupError):
            if self.pid:
                self.pull_the_plug()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        remove_cgroup(self.cgroup)
        if self._process is not None:
            self._process.wait(10)
        shutil.rmtree(self._folder)


def cgroup2() -> Path | None:
    """Where this machine shows its cgroup v2 tree, on hybrid and on unified layouts."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4])
    return None


def remove_cgroup(name: str) -> None:
    """End what is left in a cgroup of ours, then remove it."""
    mount = cgroup2()
    if mount is None or not (mount / name).exists():
        return
    top = mount / name
    (top / "cgroup.kill").write_text("1")

    def empty() -> bool:
        return "populated 0" in (top / "cgroup.events").read_text()

    wait(empty, 10, f"the end of all processes in {top}", every_s=0.02)
    for folder in sorted(top.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        if folder.is_dir():
            folder.rmdir()
    top.rmdir()


def remove_stale(folder: Path) -> None:
    """Clean up after test runs that were killed: their cgroups and disks carry their pid.

    :param folder: where the disks lie, in ``nodes.PID.*``.
    """

    def orphaned(owner: str) -> bool:
        return owner.isdigit() and not Path("/proc", owner).exists()

    mount = cgroup2()
    for top in mount.glob(f"{CGROUP_PREFIX}-*") if mount else ():
        if orphaned(top.name.removeprefix(f"{CGROUP_PREFIX}-").partition("-")[0]):
            remove_cgroup(top.name)
    for disks in folder.glob("nodes.*"):
        if orphaned(disks.name.split(".")[1]):
            shutil.rmtree(disks)


@contextlib.contextmanager
def booted(
    name: str, lowerdir: str, scratch: Path, *, arguments: Sequence[str] = ()
) -> Iterator[Node]:
    """A node from boot to clean-up, whatever happens in between."""
    with booting(name, lowerdir, scratch, arguments=arguments) as node:
        node.await_boot()
        yield node


@contextlib.contextmanager
def booting(
    name: str, lowerdir: str, scratch: Path, *, arguments: Sequence[str] = ()
) -> Iterator[Node]:
    """Like `booted`, but the caller waits for it: several nodes boot in the time of one."""
    node = Node(name, lowerdir, scratch / name, arguments=arguments)
    try:
        node.begin_boot()
        yield node
    finally:
        node.close()
