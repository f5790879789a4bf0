# SPDX-License-Identifier: GPL-2.0-or-later
"""What needs a kernel of the series or KVM, in an emulated host: some of tests/e2e and tests/unit.

The guests' second-level page tables have real accessed bits there. They are of 4 KiB pages: a
guest on huge pages makes no progress under this emulation.
"""

from __future__ import annotations

import pytest
from emulated import host
from emulated.amd import AmdHost
from emulated.initramfs import REPO

# Two processors: see QEMU's patch of cpu_clear_ignne(), without which guests under KVM die of it.
CONFIG = AmdHost(memory_mib=6144, cpus=2)
# Everything there is slower by about this factor.
PATIENCE = 10
# Smaller than elsewhere, but more than the main host's part has room for: there is paging.
PATTERN_MIB = 96
LIMIT_S = 1500.0
UNDER_KVM = [
    "test_access_tracker.py::test_what_a_source_sees[kvm]",
    "test_access_tracker.py::test_what_a_source_sees[idle]",
    "test_access_tracker.py::test_scans_lose_no_write_to_a_migration[kvm]",
    "test_access_tracker.py::test_the_best_source_is_chosen",
    "test_split_migration.py::test_policies[aging]",
    "test_split_migration.py::test_auto_page_out_says_why",
]


def test_under_kvm(run_host, slower):
    script = ("echo never > /sys/kernel/mm/transparent_hugepage/enabled;"
              'cd tests/e2e; exec /usr/bin/python3 -m pytest -v -rs -p no:cacheprovider "$@"')
    outcome = run_host("sh", "-c", script, "sh", *UNDER_KVM, timeout_s=LIMIT_S, cwd=REPO,
                       config=CONFIG, env={"KINTSUGI_PATIENCE": str(PATIENCE * slower),
                                           "KINTSUGI_PATTERN_MIB": str(PATTERN_MIB)})
    text = (outcome.stdout + outcome.stderr).decode(errors="replace")
    print(text)
    assert outcome.status == 0
    assert f"{len(UNDER_KVM)} passed" in text  # and none skipped: KVM was used
    assert outcome.complaints() == []


@pytest.mark.parametrize("program", ["pager_test", "pager_faults_test"])
def test_pager_with_uffdio_pageout(program, run_host):
    """The pager's unit tests of the ioctl, which have a stand-in for it on other kernels."""
    outcome = run_host(str(host.BUILD / "cmake" / "tests" / "unit" / program),
                       "--gtest_filter=*Pageout*:*ThePageOut*:PagerKernel.*Taken*",
                       timeout_s=LIMIT_S)
    text = (outcome.stdout + outcome.stderr).decode(errors="replace")
    print(text)
    assert outcome.status == 0
    assert "SKIPPED" not in text and "PASSED" in text
