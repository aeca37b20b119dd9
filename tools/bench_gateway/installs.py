"""Where the others come from: Python's package index and Debian's archive, all into .cache/bench.

Nothing is installed into this machine and no service is started.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tools import packages
from tools.packages import MissingError

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "bench"

# Fixed, so that two runs on different days compare; renewed by hand.
SMG = "smg==1.13.0"
LITELLM = "litellm[proxy]==1.106.2"
# Its server takes the faster of its two parsers only where this is there as well.
LITELLM_BESIDE = ("httptools==0.9.0",)


def venv_with(name: str, *requirements: str) -> Path:
    """As `packages.venv_with`, in `FOLDER`."""
    return packages.venv_with(FOLDER / name, *requirements)


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
        packages.ran(["apt-get", "download", "-qq", "nginx"], unpacked)
        packages.ran(["dpkg-deb", "-x", *map(str, unpacked.glob("nginx_*.deb")), str(unpacked)])
    # Its libraries are on most Debians; where one is not, it says which.
    packages.ran([str(found), "-v"])
    return found
