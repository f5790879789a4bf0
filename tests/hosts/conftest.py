# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests in emulated hosts.

Each test's logs stay under build/hosts/, and where they are is printed when it fails.
KINTSUGI_HOST_KERNEL names another kernel than build/kernel/bzImage; on one that checks itself
(linux-patches/config/debug.config), any complaint of it fails the test.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
from emulated import host  # noqa: E402
from emulated.amd import AmdHost  # noqa: E402
from emulated.intel import IntelHost  # noqa: E402

DEBUG_SLOWER = 8.0


def under_debug_kernel() -> bool:
    """Whether the kernel is the one that checks itself."""
    return host.kernel().parent.name == "kernel-debug"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say where a failed test left its logs."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    logs = getattr(item, "funcargs", {}).get("logs")
    if report.failed and logs is not None and logs.exists():
        files = "\n".join(f"  {path}" for path in sorted(logs.rglob("*")) if path.is_file())
        report.sections.append(("logs", files))


@pytest.fixture
def logs(request: pytest.FixtureRequest) -> Path:
    """The directory of one test's logs, empty."""
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", request.node.name).strip("-")
    path = host.BUILD / "hosts" / ("debug" if under_debug_kernel() else "tests") / name
    shutil.rmtree(path, ignore_errors=True)
    return path


@pytest.fixture(scope="session")
def slower() -> float:
    """What to multiply limits of time by."""
    return DEBUG_SLOWER if under_debug_kernel() else 1.0


@pytest.fixture
def run_host(logs: Path, slower: float) -> Callable[..., host.Outcome]:
    """Run a command in a host of its own: `run_host("sh", "-c", "...", timeout_s=60)`."""

    def run(*command: str, timeout_s: float = 120.0, config: host.HostConfig | None = None,
            complaints: bool = False, **options: object) -> host.Outcome:
        config = config or AmdHost()
        if isinstance(config, IntelHost):  # limits within it are in its own time
            config = dataclasses.replace(
                config, instructions_per_s=int(config.instructions_per_s * slower))
        outcome = host.run(command, config, logs=logs,
                           timeout_s=timeout_s * slower, **options)  # type: ignore[arg-type]
        if under_debug_kernel() and not complaints:
            assert not outcome.complaints()
        return outcome

    return run


@pytest.fixture(scope="session", autouse=True)
def binaries_exist() -> None:
    """Fail at once, with one clear message, when nothing is built."""
    config = AmdHost()
    for path, how in ((config.qemu, "make qemu"), (config.kernel, "make kernel")):
        if not path.exists():
            pytest.exit(f"{path} does not exist; build it ({how})", 2)


def pytest_report_header() -> str:
    """Which kernel it is."""
    return f"kernel of the hosts: {os.path.relpath(host.kernel())}"
