"""Where the others come from: Python's package index and Debian's archive, all into .cache/bench.

Nothing is installed into this machine and no service is started.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "bench"

# Fixed, so that two runs on different days compare; renewed by hand.
SMG = "smg==1.13.0"
LITELLM = "litellm[proxy]==1.106.2"
# Its server takes the faster of its two parsers only where this is there as well.
LITELLM_BESIDE = ("httptools==0.9.0",)
# Only wheels: a router is not built from source here.
_PIP = ("install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:")
_INSTALL_S = 900
_LINES = 1


class MissingError(Exception):
    """It cannot be measured here; the message says why, in one line."""


def venv_with(name: str, *requirements: str) -> Path:
    """The ``bin`` folder of a virtual environment of its own with these packages.

    :raises MissingError: it cannot be installed.
    """
    venv = FOLDER / name
    stamp = venv / ".installed"
    wanted = " ".join(requirements)
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"Installing {wanted} into {venv} ...", file=sys.stderr, flush=True)
        shutil.rmtree(venv, ignore_errors=True)
        _ran([sys.executable, "-m", "venv", str(venv)])
        _ran([str(venv / "bin" / "python"), "-m", "pip", *_PIP, *requirements])
        stamp.write_text(wanted)
    return venv / "bin"


def nginx() -> Path:
    """The machine's, or Debian's package unpacked, not installed: that would start a service.

    :raises MissingError: there is neither.
    """
    unpacked = FOLDER / "nginx"
    program = shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/usr/bin")
    found = Path(program) if program else unpacked / "usr" / "sbin" / "nginx"
    if not found.is_file():
        if shutil.which("apt-get") is None:
            raise MissingError("nginx is not installed and there is no apt-get to fetch it")
        print(f"Unpacking Debian's nginx into {unpacked} ...", file=sys.stderr, flush=True)
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        _ran(["apt-get", "download", "-qq", "nginx"], unpacked)
        _ran(["dpkg-deb", "-x", *map(str, unpacked.glob("nginx_*.deb")), str(unpacked)])
    # Its libraries are on most Debians; where one is not, it says which.
    _ran([str(found), "-v"])
    return found


def _ran(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{Path(command[0]).name}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-_LINES:]
        raise MissingError(f"{Path(command[0]).name} failed: {' '.join(said)[:200]}")
