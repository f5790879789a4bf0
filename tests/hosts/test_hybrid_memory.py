# SPDX-License-Identifier: GPL-2.0-or-later
"""Hybrid memory under KVM: physical ranges by /dev/tiermem and /dev/mem, and NUMA nodes.

The tests are those of tests/e2e/test_hybrid_memory.py, in an emulated host that has such memory.
"""

from __future__ import annotations

import pytest
from emulated.amd import AmdHost
from emulated.initramfs import REPO

PATIENCE = 10
PATTERN_MIB = 64
LIMIT_S = 1500.0
SLOW, FAST = 0x40000000, 0x60000000
# The guest's RAM fits into the slow range, and an eighth of it into the fast one.
RANGES = f"512M@{SLOW:#x},128M@{FAST:#x}"
SET_ASIDE = ("memmap=" + RANGES.replace("@", "$"),)
TIERMEM = (*SET_ASIDE, "tiermem.ranges=" + RANGES)
# The second node has memory and no processor, as CXL memory appears.
NODES = ("-object", "memory-backend-ram,id=near,size=2560M",
         "-object", "memory-backend-ram,id=far,size=512M",
         "-numa", "node,nodeid=0,cpus=0-1,memdev=near", "-numa", "node,nodeid=1,memdev=far")
SWAPPING = ["test_writes_move_to_fast_memory", "test_swaps_without_end_lose_no_byte",
            "test_what_is_told", "test_migrates_to_an_ordinary_vm_and_back",
            "test_killed_while_it_swaps"]
DIRECT_IO = ["test_direct_io"]
CASES = {
    "tiermem": (TIERMEM, (), f"tiermem:{FAST:#x}:{SLOW:#x}", SWAPPING, 5),
    "tiermem-disk": (TIERMEM, (), f"tiermem:{FAST:#x}:{SLOW:#x}",
                     [*DIRECT_IO, "test_without_root"], 4),
    "mem": (SET_ASIDE, (), f"mem:{FAST:#x}:{SLOW:#x}", SWAPPING[:1] + DIRECT_IO, 4),
    "nodes": ((), NODES, "nodes:0:1", SWAPPING[:3], 3),
}


@pytest.mark.parametrize("case", CASES)
def test_under_kvm(run_host, slower, tmp_path, case):
    append, extra, tiers, tests, count = CASES[case]
    script = ("echo never > /sys/kernel/mm/transparent_hugepage/enabled;"
              'cd tests/e2e; exec /usr/bin/python3 -m pytest -v -rs -p no:cacheprovider "$@"')
    outcome = run_host("sh", "-c", script, "sh",
                       *(f"test_hybrid_memory.py::{test}" for test in tests),
                       timeout_s=LIMIT_S, cwd=REPO,
                       config=AmdHost(cpus=2, append=append, extra=extra, writable=(tmp_path,)),
                       env={"KINTSUGI_PATIENCE": str(PATIENCE * slower),
                            "KINTSUGI_PATTERN_MIB": str(PATTERN_MIB), "KINTSUGI_TIERS": tiers,
                            "KINTSUGI_DISKS": str(tmp_path)})  # 9p pins memory
    text = (outcome.stdout + outcome.stderr).decode(errors="replace")
    print(text)
    assert outcome.status == 0
    assert f"{count} passed" in text  # and none skipped: KVM was used
    assert outcome.complaints() == []
