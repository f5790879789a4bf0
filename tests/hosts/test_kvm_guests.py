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

CONFIG = AmdHost(memory_mib=6144)
# Everything there is slower by about this factor.
PATIENCE = 10
LIMIT_S = 900.0


@pytest.mark.parametrize("tests", [
    "test_access_tracker.py::test_what_a_source_sees[kvm]",
    "test_access_tracker.py::test_what_a_source_sees[idle]",
    "test_access_tracker.py::test_the_best_source_is_chosen",
])
def test_under_kvm(tests, run_host, slower):
    script = ("echo never > /sys/kernel/mm/transparent_hugepage/enabled;"
              'exec /usr/bin/python3 -m pytest -q -rs -p no:cacheprovider "tests/e2e/$0"')
    outcome = run_host("sh", "-c", script, tests, timeout_s=LIMIT_S, cwd=REPO, config=CONFIG,
                       env={"KINTSUGI_PATIENCE": str(PATIENCE * slower)})
    text = (outcome.stdout + outcome.stderr).decode(errors="replace")
    print(text)
    assert outcome.status == 0
    assert "1 passed" in text  # and not skipped: KVM was used
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
