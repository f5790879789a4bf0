# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of an emulated host: init, and what it is to do.

Written here rather than by cpio, since each run has one of its own. The format is the kernel's
"newc", see Documentation/driver-api/early-userspace/buffer-format.rst there.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
INIT_SOURCE = REPO / "tests" / "hosts" / "init.c"
INIT = REPO / "build" / "hosts" / "init"
# {path: (permissions, content)}; a symbolic link or directory has its type with the permissions.
Files = dict[str, tuple[int, bytes]]
CFLAGS = ("-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror")


def built_init() -> Path:
    """The path of init, compiled if its source is newer."""
    if INIT.exists() and INIT.stat().st_mtime > INIT_SOURCE.stat().st_mtime:
        return INIT
    INIT.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=INIT.parent)
    os.close(handle)
    try:
        subprocess.run(["gcc", *CFLAGS, "-o", temp, str(INIT_SOURCE)], check=True)
        os.replace(temp, INIT)
    except BaseException:
        os.unlink(temp)
        raise
    return INIT


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def archive(files: Files) -> bytes:
    """A cpio archive of `files`, with the directories the paths need."""
    parents = {str(parent) for path in files for parent in Path(path).parents} - {".", *files}
    wanted = {**{path: (stat.S_IFDIR | 0o755, b"") for path in parents}, **files}
    entries = [(path, mode if stat.S_IFMT(mode) else stat.S_IFREG | mode, data)
               for path, (mode, data) in sorted(wanted.items())]
    parts = [_entry(number, *entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*parts, _entry(0, "TRAILER!!!", 0, b"")])


def initramfs(records: Iterable[tuple[str, str]],
              more: Files | None = None) -> bytes:
    """The initramfs for one run: init reads `records`, see tests/hosts/init.c."""
    run = b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in records)
    return archive({"init": (0o755, built_init().read_bytes()), "kintsugi.run": (0o600, run),
                    **(more or {})})
