# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the packages' tests. They need root, for chroot and debootstrap."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

# pylint: disable=wrong-import-position
from roots import ROOT, Root, debian_fetch  # noqa: E402

CODENAME = debian_fetch.os_release()["VERSION_CODENAME"]
MakeRoot = Callable[[str], Root]


@pytest.fixture(scope="session", autouse=True)
def is_root() -> None:
    """Fail at once, and clearly."""
    if os.geteuid() != 0:
        pytest.exit("make test-deb makes chroots: run it as root", 2)


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The packages that `make deb` made, by name."""
    found = {path.name.split("_")[0]: path for path in (ROOT / "build/deb").glob("*.deb")}
    assert set(found) == {"kintsugi-qemu", "kintsugi-memserver"}, "make deb"
    return found


@pytest.fixture
def make_root(tmp_path: Path) -> Iterator[MakeRoot]:
    """Make clean roots of this release."""
    made: list[Root] = []

    def make(name: str) -> Root:
        root = Root(tmp_path / name, CODENAME)
        made.append(root)
        root.run("apt-get", "update", "-q")
        return root

    yield make
    for root in made:
        root.close()
