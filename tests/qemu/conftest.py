# SPDX-License-Identifier: GPL-2.0-or-later
"""The stock build to compare with, made when the first case fails; and KVM hidden."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
from qtests import FORK, ROOT, STOCK, Case, Outcome, Runner  # noqa: E402


@pytest.fixture(scope="session")
def fork() -> Runner:
    """The fork's build; the session ends at once where it would use KVM."""
    runner = Runner(FORK)
    if said := runner.hides_kvm():
        pytest.exit(f"KVM cannot be hidden from QEMU's tests: {said}\n"
                    "Run as root, or allow unprivileged user namespaces", 2)
    return runner


class StockBuild:
    """QEMU without our changes, and its tests."""

    def __init__(self) -> None:
        self._runner: Runner | None = None

    def run(self, case: Case) -> Outcome:
        """Run a case, if it is there: what tests a command of ours is not."""
        runner = self._built()
        if case.path not in (theirs.path for theirs in runner.cases(case.program)):
            return Outcome("skipped", "not there", "")
        return runner.run(case)

    def _built(self) -> Runner:
        """Build it, once; where it is built already, that takes a second or two."""
        if self._runner is None:
            for command in (["scripts/source_tree.py", "stock"],
                            ["scripts/qemu-build.sh", "stock", "tests"]):
                done = subprocess.run(command, cwd=ROOT, text=True, check=False,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT)
                assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}"
            self._runner = Runner(STOCK)
        return self._runner


@pytest.fixture(scope="session")
def stock() -> StockBuild:
    """What a failure is compared with."""
    return StockBuild()
