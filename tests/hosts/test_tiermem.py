# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/tiermem and what depends on the kernel's command line, in both kinds of host."""

from __future__ import annotations

import pytest
from emulated.amd import AmdHost
from emulated.host import HostConfig
from emulated.intel import IntelHost
from test_selftests import rows_of, run_selftest

REFUSED = "dmesg | grep tiermem: ; test ! -e /dev/tiermem"


@pytest.mark.parametrize("kind", [AmdHost, IntelHost], ids=lambda kind: kind.name)
def test_kvm_keeps_pages_mapped_if_told_to(kind: type[HostConfig], run_host):
    """That nothing but the parameter makes the same guests fail without it."""
    row, = (row for row in rows_of(kind.name) if row.program.endswith("unsafe_mappings_test"))
    outcome = run_selftest(run_host, row, kind(append=("kvm.allow_unsafe_mappings=1",)))
    assert b"KVM keeps mapped pages without references\n" in outcome.stdout


@pytest.mark.parametrize("ranges, why", [
    ("16M@0xe0000000", b"is not write-back by the MTRRs"),
    ("16M@0x10000000,16M@0xe0000000", b"is not write-back by the MTRRs"),
    ("16M@0x20000000", b"is used by the kernel, set it aside by memmap="),
    ("16M@0x10000000,16M@0x10800000", b"is used by another driver"),
    ("16M", b"ranges must be SIZE@ADDR"),
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("kind", [AmdHost, IntelHost], ids=lambda kind: kind.name)
def test_ranges_that_are_refused(kind: type[HostConfig], ranges, why, run_host):
    """All of them, with a reason, if one cannot be used."""
    outcome = run_host("sh", "-c", REFUSED, config=kind(
        append=("memmap=128M$0x10000000", f"tiermem.ranges={ranges}")))
    assert outcome.status == 0, outcome.stdout
    assert why in outcome.stdout


def test_memory_that_guests_would_get_uncached_is_refused_on_intel(run_host):
    """KVM takes for MMIO what the firmware does not call RAM."""
    outcome = run_host("sh", "-c", REFUSED, config=IntelHost(
        append=("tiermem.ranges=16M@0x200000000",)))
    assert outcome.status == 0, outcome.stdout
    assert b"is not RAM to the firmware, so guests would get it uncached" in outcome.stdout
