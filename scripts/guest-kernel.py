#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch the kernel that test guests boot, and print the path of its vmlinuz.

The kernel is Debian's cloud kernel. Its package is found through the metapackage
linux-image-cloud-amd64, downloaded by apt and unpacked by `dpkg -x` into the user's cache; it is
never installed. A kernel that is already in the cache is used without the network. An unpacked
kernel appears under its final name by one rename, so an interrupted run leaves nothing half done.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

METAPACKAGE = "linux-image-cloud-amd64"
PACKAGE_RE = re.compile(r"^linux-image-(\S+-cloud-amd64)$")


class KernelError(Exception):
    """Something the user can act on."""


def cache_root() -> Path:
    """The directory that holds the unpacked kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kintsugi"


def vmlinuz_in(directory: Path) -> Path | None:
    """The kernel image in an unpacked package, or None if there is no complete one."""
    found = sorted(directory.glob("boot/vmlinuz-*"))
    return found[-1] if found and found[-1].stat().st_size > 0 else None


def resolve_package() -> str | None:
    """The name of the package behind the metapackage, or None if apt does not know it."""
    try:
        out = subprocess.run(
            ["apt-cache", "depends", "--important", METAPACKAGE],
            check=True, capture_output=True, text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    for line in out.splitlines():
        name = line.split(":", 1)[-1].strip()
        if PACKAGE_RE.match(name) and name != METAPACKAGE:
            return name
    return None


def version_key(path: Path) -> list[int]:
    """Sort kernels by the numbers in their version."""
    return [int(number) for number in re.findall(r"\d+", path.name)]


def newest_cached(root: Path) -> Path | None:
    """The newest complete kernel in the cache."""
    for directory in sorted(root.glob("guest-kernel-*"), key=version_key, reverse=True):
        image = vmlinuz_in(directory)
        if image:
            return image
    return None


def fetch(package: str, target: Path) -> Path:
    """Download and unpack `package` as `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".guest-kernel-", dir=target.parent))
    try:
        print(f"guest-kernel: downloading {package}", file=sys.stderr, flush=True)
        download = subprocess.run(
            ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package],
            cwd=work, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False,
        )
        debs = sorted(work.glob("*.deb"))
        if download.returncode != 0 or not debs:
            raise KernelError(f"apt-get download {package} failed; is the package list fresh?"
                              " Run `apt-get update` and try again")
        unpacked = work / "unpacked"
        subprocess.run(["dpkg", "-x", str(debs[0]), str(unpacked)], check=True)
        if vmlinuz_in(unpacked) is None:
            raise KernelError(f"{debs[0].name} holds no boot/vmlinuz-*")
        if target.exists() and vmlinuz_in(target) is None:
            shutil.rmtree(target)  # left by something other than this script
        try:
            unpacked.rename(target)
        except OSError:
            if vmlinuz_in(target) is None:
                raise
            # Another run was faster; its copy is as good as ours.
    finally:
        shutil.rmtree(work, ignore_errors=True)
    image = vmlinuz_in(target)
    assert image is not None
    return image


def guest_kernel() -> Path:
    """The path of a bootable kernel image, fetched if the cache has none."""
    root = cache_root()
    package = resolve_package()
    if package is None:
        image = newest_cached(root)
        if image is None:
            raise KernelError(f"apt knows no package behind {METAPACKAGE}; run `apt-get update`")
        return image
    target = root / f"guest-kernel-{PACKAGE_RE.match(package)[1]}"  # type: ignore[index]
    image = vmlinuz_in(target)
    if image is not None:
        return image
    try:
        return fetch(package, target)
    except (KernelError, subprocess.CalledProcessError) as error:
        image = newest_cached(root)
        if image is None:
            raise
        print(f"guest-kernel: {error}; using {image}", file=sys.stderr)
        return image


def main() -> int:
    """Print the kernel's path."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.parse_args()
    try:
        print(guest_kernel())
    except (KernelError, subprocess.CalledProcessError, OSError) as error:
        print(f"guest-kernel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
