# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own selftests, and those that our patches add, in emulated hosts."""

from __future__ import annotations

import pytest
from emulated import host, selftests

ROWS = selftests.read_table()
# Two ranges for /dev/tiermem, which the kernel is kept from using as RAM.
TIERMEM = ("memmap=16M$0x10000000,16M$0x12000000",
           "tiermem.ranges=16M@0x10000000,16M@0x12000000")
# Tests use what huge pages they find.
CONFIGS = {"mm": host.HostConfig(append=("hugepages=256",)),
           "kvm": host.HostConfig(append=("hugepages=8", *TIERMEM)),
           "tiermem": host.HostConfig(append=TIERMEM)}


@pytest.mark.parametrize("row", [row for row in ROWS if "amd" in row.hosts],
                         ids=lambda row: row.name)
def test_on_amd(row, run_host):
    outcome = run_host(str(row.path), *row.arguments, timeout_s=row.timeout_s,
                       cwd=row.path.parent, config=CONFIGS.get(row.collection))
    text = (outcome.stdout + outcome.stderr).decode(errors="replace")
    print(text)
    if outcome.status == selftests.SKIPPED:
        pytest.skip(text.strip().splitlines()[-1] if text.strip() else "it gives no reason")
    assert outcome.status == 0
