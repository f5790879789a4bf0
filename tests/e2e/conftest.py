# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the end-to-end tests.

Each test gets a Work: its logs stay under build/e2e-logs/, and where they are is printed when it
fails. The accelerator is probed once a session, and guests are booted once a session and then
started from a snapshot. Set KINTSUGI_E2E_STOCK=1 to skip, with a stock QEMU, what needs the fork.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
from kintsugi.accel import Accelerator, probe_accelerator  # noqa: E402
from kintsugi.report import add_logs  # noqa: E402
from kintsugi.split import SplitSetup  # noqa: E402
from kintsugi.util import BUILD, Work, qemu_binary  # noqa: E402
from kintsugi.vm import Snapshots, Vm, VmConfig  # noqa: E402

LOGS = BUILD / "e2e-logs"
GUEST = {"zero": 10, "hot": 20, "beat_ms": 100}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say where a failed test left its logs."""
    outcome = yield
    add_logs(item, outcome.get_result())  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With KINTSUGI_E2E_STOCK=1, skip what needs the fork."""
    if os.environ.get("KINTSUGI_E2E_STOCK") != "1":
        return
    for item in items:
        if item.get_closest_marker("split"):
            item.add_marker(pytest.mark.skip(reason="KINTSUGI_E2E_STOCK=1"))


@pytest.fixture(scope="session")
def session_work() -> Iterator[Work]:
    """Files of the whole session: the probe and the boot snapshots."""
    work = Work(LOGS / os.environ.get("PYTEST_XDIST_WORKER", "session"))
    yield work
    work.close()


@pytest.fixture(scope="session")
def accelerator(session_work: Work) -> Accelerator:
    """What guests run on here."""
    found = probe_accelerator(session_work)
    print(f"\nguests run under {found.reason}", file=sys.__stderr__)
    return found


@pytest.fixture(scope="session")
def snapshots(session_work: Work) -> Snapshots:
    """Guests to start from."""
    return Snapshots(session_work)


@pytest.fixture
def work(request: pytest.FixtureRequest) -> Iterator[Work]:
    """The files of one test."""
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", request.node.name).strip("-")
    result = Work(LOGS / request.node.path.stem / name)
    yield result
    result.close()


@pytest.fixture
def config(accelerator: Accelerator) -> VmConfig:
    """The VM that most tests use: 256 MiB of RAM, half of it pattern.

    An emulated host, which is slow, asks for less: KINTSUGI_PATTERN_MIB.
    """
    pattern_mib = int(os.environ.get("KINTSUGI_PATTERN_MIB", VmConfig.pattern_mib))
    return VmConfig(accel=accelerator.name, pattern_mib=pattern_mib).with_guest(**GUEST)


@pytest.fixture
def vms(work: Work, snapshots: Snapshots) -> Iterator[Callable[..., Vm]]:
    """Start VMs: `vms(name, config)` with a running guest, `vms(name, config, incoming=True)`."""
    started: list[Vm] = []

    def start(name: str, config: VmConfig, incoming: bool = False) -> Vm:
        vm = Vm(name, config, work, True) if incoming else snapshots.start(name, config, work)
        started.append(vm)
        return vm

    yield start
    for vm in reversed(started):
        vm.end()


@pytest.fixture
def make_setup(work: Work, snapshots: Snapshots,
               config: VmConfig) -> Iterator[Callable[..., SplitSetup]]:
    """Make a SplitSetup with options of one's own."""
    made: list[SplitSetup] = []

    def make(vm: VmConfig = config, **options: object) -> SplitSetup:
        setup = SplitSetup(work, snapshots, vm, **options)  # type: ignore[arg-type]
        made.append(setup)
        return setup

    yield make
    for setup in made:
        setup.close()


@pytest.fixture
def setup(make_setup: Callable[..., SplitSetup]) -> SplitSetup:
    """Two servers and a source with a running guest."""
    return make_setup()


@pytest.fixture(scope="session", autouse=True)
def binaries_exist() -> None:
    """Fail at once, with one clear message, when nothing is built."""
    if not qemu_binary().exists():
        pytest.exit(f"{qemu_binary()} does not exist; build it (make qemu) or set KINTSUGI_QEMU", 2)
