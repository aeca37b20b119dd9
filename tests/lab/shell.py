"""`python -m tests.lab.shell`: boot a node of the working copy and give its root shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab import node as lab
from tests.lab.conftest import CACHE, REPOSITORY


def main() -> int:
    build = [sys.executable, str(REPOSITORY / "images/lab/root.py"), "--cache", str(CACHE)]
    built = subprocess.run(build, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0:
        return 1
    lowerdir: str = json.loads(built.stdout)["lowerdir"]
    with (
        tempfile.TemporaryDirectory(prefix=f"nodes.{os.getpid()}.", dir=CACHE) as disks,
        lab.booted("shell", lowerdir, Path(disks)) as node,
    ):
        print(f"systemd runs as process {node.pid}; `exit` switches the node off.", flush=True)
        # The login shell's status is the person's business.
        subprocess.run(lab.enter_command(node.pid, ["bash", "-l"]), check=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
