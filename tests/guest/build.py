#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the test guests under build/guest/, and print the path of one.

    build.py           an initramfs for Linux: Debian's busybox-static, tests/guest/init and the
                       static programs beside this file
    build.py --bare    the guest without an operating system, bareguest.c

Each is rebuilt only when what it is made of changed, and appears under its name by one rename.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "build" / "guest"
PROGRAMS = ("patternguest",)
CFLAGS = ("-std=gnu11", "-O2", "-g0", "-static", "-pthread", "-Wall", "-Wextra", "-Werror")
BARE_CFLAGS = ("-std=gnu11", "-m32", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-ffreestanding",
               "-fno-pic", "-fno-stack-protector", "-fcf-protection=none",
               "-fno-asynchronous-unwind-tables", "-mgeneral-regs-only")
# -N keeps the multiboot header within the first 8 KiB of the file.
BARE_LDFLAGS = ("-nostdlib", "-static", "-no-pie", "-Wl,-N,-Ttext=0x100000,--build-id=none",
                "-Wl,-z,noexecstack,--no-warn-rwx-segments")


class BuildError(Exception):
    """Something the user can act on."""


def busybox() -> Path:
    """The static busybox of the machine."""
    for candidate in ("/bin/busybox", "/usr/bin/busybox"):
        if os.access(candidate, os.X_OK):
            return Path(candidate)
    raise BuildError("busybox is missing; install the package busybox-static")


def build_bare() -> Path:
    """Build the bare guest if it is out of date and return its path."""
    target, source = OUTPUT / "bareguest", HERE / "bareguest.c"
    newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
    if target.exists() and newest < target.stat().st_mtime:
        return target
    OUTPUT.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".bareguest-", dir=OUTPUT))
    try:
        program = work / "bareguest"
        subprocess.run(["gcc", *BARE_CFLAGS, *BARE_LDFLAGS, "-o", str(program), str(source)],
                       check=True)
        program.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def build() -> Path:
    """Build what is out of date and return the initramfs's path."""
    target = OUTPUT / "initramfs.cpio"
    sources = [HERE / f"{name}.c" for name in PROGRAMS]
    inputs = [*sources, HERE / "init", Path(__file__).resolve(), busybox()]
    if target.exists() and all(p.stat().st_mtime < target.stat().st_mtime for p in inputs):
        return target
    for tool in ("gcc", "cpio"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is missing; install the package {tool}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".initramfs-", dir=OUTPUT))
    try:
        root = work / "root"
        for directory in ("bin", "dev", "proc", "sys"):
            (root / directory).mkdir(parents=True)
        for name, source in zip(PROGRAMS, sources):
            program = root / "bin" / name
            subprocess.run(["gcc", *CFLAGS, "-o", str(program), str(source)], check=True)
            subprocess.run(["strip", str(program)], check=True)
        shutil.copy(busybox(), root / "bin" / "busybox")
        shutil.copy(HERE / "init", root / "init")
        (root / "init").chmod(0o755)
        names = sorted(str(p.relative_to(root)) for p in root.rglob("*"))
        archive = work / "initramfs.cpio"
        with archive.open("wb") as out:
            subprocess.run(
                ["cpio", "-o", "-H", "newc", "-R", "0:0", "--reproducible", "--quiet"],
                cwd=root, input="\n".join(names).encode(), stdout=out, check=True,
            )
        archive.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def main() -> int:
    """Print the guest's path."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--bare", action="store_true", help="the one without an operating system")
    args = parser.parse_args()
    try:
        print(build_bare() if args.bare else build())
    except (BuildError, OSError, subprocess.CalledProcessError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
