# SPDX-License-Identifier: GPL-2.0-or-later
"""A clean Debian root, unpacked for each use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

# pylint: disable=wrong-import-position
import debian_root  # noqa: E402

USER = "vmoperator"   # may use KVM; no other rights
NOT_OURS = ("/dev/", "/proc/", "/sys/", "/run/", "/tmp/", "/var/cache/", "/var/log/",
            "/var/lib/apt/", "/var/lib/dpkg/", "/etc/ld.so.cache", "/var/lib/systemd/")


class RootError(Exception):
    """A command in a root failed."""


class Root:
    """One clean root at `path`, which close() removes."""

    def __init__(self, path: Path, codename: str) -> None:
        self.path = path
        self._mounts: list[Path] = []
        debian_root.unpack(codename, path)

    def close(self) -> None:
        """Unmount, and remove it."""
        for mount in reversed(self._mounts):
            subprocess.run(["umount", "-l", str(mount)], check=True)
        shutil.rmtree(self.path)

    def bind(self, source: Path, target: str | None = None) -> None:
        """Show a directory of the machine, by default at the same path."""
        at = self.path / str(target or source).lstrip("/")
        at.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(source), str(at)], check=True)
        self._mounts.append(at)

    def run(self, *command: str, wanted: int = 0) -> str:
        """Run a command as root in it, and return what it said."""
        done = subprocess.run(["chroot", str(self.path), *command], text=True, check=False,
                              env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C",
                                   "DEBIAN_FRONTEND": "noninteractive"},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode != wanted:
            raise RootError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def install(self, packages: Sequence[str | Path]) -> str:
        """apt-get install, of names and of files."""
        names = []
        for package in packages:
            if isinstance(package, Path):
                shutil.copy(package, self.path / "tmp")
                names.append(f"/tmp/{package.name}")
            else:
                names.append(package)
        return self.run("apt-get", "install", "-qy", "--no-install-recommends", *names)

    def files(self) -> set[str]:
        """Every path in it but what packages leave behind by design."""
        found = set()
        for directory, _, names in os.walk(self.path):
            for name in names:
                path = "/" + str((Path(directory) / name).relative_to(self.path))
                if not path.startswith(NOT_OURS):
                    found.add(path)
        return found

    def wrapper(self, program: str, at: Path) -> Path:
        """A script on the machine that runs a program in it as USER."""
        at.write_text(f'#!/bin/sh\nexec chroot --userspec={USER}:kvm --groups=kvm {self.path} '
                      f'{program} "$@"\n', encoding="utf-8")
        at.chmod(0o755)
        return at
