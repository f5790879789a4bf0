# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own tests on the fork.

A case that fails is run on QEMU without our changes, too. If it fails there as well, it is an
expected failure, named in the summary and counted as skipped; otherwise it is ours.
"""

from __future__ import annotations

import pytest
from conftest import StockBuild
from qtests import FORK, Case, Runner, read_table

CASES = [case for program in read_table() for case in Runner(FORK).cases(program)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_qemu(case: Case, fork: Runner, stock: StockBuild) -> None:
    outcome = fork.run(case)
    if outcome.verdict == "skipped":
        pytest.skip(outcome.why)
    if outcome.verdict == "passed":
        return
    print(outcome.end)
    theirs = stock.run(case)
    if theirs.verdict == "failed":
        pytest.xfail(f"{outcome.why}; without our changes: {theirs.why}")
    pytest.fail(f"{outcome.why}; without our changes: {theirs.why or theirs.verdict}",
                pytrace=False)
