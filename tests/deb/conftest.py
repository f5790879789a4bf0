# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the packages' tests. They need root, for chroot and debootstrap.

KINTSUGI_RELEASE is the release that is tested, if not this machine's as it is: `make deb RELEASE=`
made its packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

# pylint: disable=wrong-import-position
from roots import Root, debian_root  # noqa: E402

RELEASE = os.environ.get("KINTSUGI_RELEASE")
CODENAME = RELEASE or debian_root.debian_fetch.os_release()["VERSION_CODENAME"]
MakeRoot = Callable[[str], Root]
Lintian = Callable[[list[Path]], tuple[int, str]]


@pytest.fixture(scope="session", autouse=True)
def is_root() -> None:
    """Fail at once, and clearly."""
    if os.geteuid() != 0:
        pytest.exit("make test-deb makes chroots: run it as root", 2)


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The packages that `make deb` made, by name."""
    directory = debian_root.build_directory(RELEASE) / "deb"
    found = {path.name.split("_")[0]: path for path in directory.glob("*.deb")}
    assert set(found) == {"kintsugi-qemu", "kintsugi-memserver"}, "make deb"
    return found


@pytest.fixture(scope="session")
def lintian() -> Lintian:
    """The release's lintian: its exit status for some packages, and what it says."""
    def check(packages: list[Path]) -> tuple[int, str]:
        names = [f"build/deb/{path.name}" for path in packages]
        command = ["lintian", "--fail-on", "error,warning", "--allow-root", *names]
        if RELEASE:
            command = debian_root.command_in(RELEASE, command)
        done = subprocess.run(command, cwd=debian_root.REPO, text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout

    return check


@pytest.fixture
def make_root(tmp_path: Path) -> Iterator[MakeRoot]:
    """Make clean roots of the release."""
    made: list[Root] = []

    def make(name: str) -> Root:
        root = Root(tmp_path / name, CODENAME)
        made.append(root)
        root.run("apt-get", "update", "-q")
        return root

    yield make
    for root in made:
        root.close()
