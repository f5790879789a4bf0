# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests with a whole Debian guest.

It is booted once a session; each test starts from there in some seconds. Logs stay under
build/debian-logs/.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

# pylint: disable=wrong-import-position
from debian import Booted, DebianSetup, FileServer  # noqa: E402
from kintsugi.report import add_logs  # noqa: E402
from kintsugi.util import BUILD, Work, memserver_binary, qemu_binary  # noqa: E402

LOGS = BUILD / "debian-logs"
MakeSetup = Callable[..., DebianSetup]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say where a failed test left its logs."""
    outcome = yield
    add_logs(item, outcome.get_result())  # type: ignore[attr-defined]


@pytest.fixture(scope="session", autouse=True)
def binaries_exist() -> None:
    """Fail at once, with one clear message, when nothing is built."""
    for program in (qemu_binary(), qemu_binary().parent / "qemu-img", memserver_binary()):
        if not program.exists():
            pytest.exit(f"{program} does not exist; build it (make all)", 2)


@pytest.fixture(scope="session")
def server() -> Iterator[FileServer]:
    """What the guest fetches from."""
    result = FileServer()
    yield result
    result.close()


@pytest.fixture(scope="session")
def booted(server: FileServer) -> Iterator[Booted]:
    """The guest that all tests start from."""
    work = Work(LOGS / "session")
    try:
        result = Booted(work, server)
        yield result
        result.close()
    finally:
        work.close()


@pytest.fixture
def work(request: pytest.FixtureRequest) -> Iterator[Work]:
    """The files of one test."""
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", request.node.name).strip("-")
    result = Work(LOGS / request.node.path.stem / name)
    yield result
    result.close()


@pytest.fixture
def make_setup(work: Work, booted: Booted) -> Iterator[MakeSetup]:
    """Make a DebianSetup with options of one's own."""
    made: list[DebianSetup] = []

    def make(**options: object) -> DebianSetup:
        setup = DebianSetup(work, booted, **options)  # type: ignore[arg-type]
        made.append(setup)
        return setup

    yield make
    for setup in made:
        setup.close()
