# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own selftests, and those that our patches add, in emulated hosts."""

from __future__ import annotations

import dataclasses

import pytest
from emulated import host, selftests
from emulated.amd import AmdHost
from emulated.intel import IntelHost

ROWS = selftests.read_table()
# Two ranges for /dev/tiermem, which the kernel is kept from using as RAM.
# A whole section of its memory map is set aside: KVM, told to keep pages mapped that have no
# reference, takes the rest of one that is RAM in part for mapped, and oopses.
TIERMEM = ("memmap=128M$0x10000000",
           "tiermem.ranges=16M@0x10000000,16M@0x12000000")
# Tests use what huge pages they find. The IOMMU of an AMD host remaps no interrupts.
APPEND = {"mm": ("hugepages=256",), "kvm": ("hugepages=8", *TIERMEM),
          "tiermem": (*TIERMEM, "vfio_iommu_type1.allow_unsafe_interrupts=1")}
# Devices of an AMD host that a test needs.
DEVICES = {"tiermem/vfio_test": ("-device", "virtio-iommu-pci", "-device", "edu")}
ACCESS_BITS = selftests.Selftest("kvm", "x86_64/access_bits_test", frozenset(), 2, 600, ())


def rows_of(name: str) -> list[selftests.Selftest]:
    """What runs in that kind of host."""
    return [row for row in ROWS if name in row.hosts]


def run_selftest(run_host, row: selftests.Selftest, config: host.HostConfig) -> host.Outcome:
    """Run it; the test fails or is skipped with it."""
    config = dataclasses.replace(config, append=(*APPEND[row.collection], *config.append))
    outcome = run_host(str(row.path), *row.arguments, timeout_s=row.timeout_s,
                       cwd=row.path.parent, config=config)
    text = (outcome.stdout + outcome.stderr).decode(errors="replace")
    print(text)
    if outcome.status == selftests.SKIPPED:
        pytest.skip(text.strip().splitlines()[-1] if text.strip() else "it gives no reason")
    assert outcome.status == 0
    return outcome


@pytest.mark.parametrize("row", rows_of("amd"), ids=lambda row: row.name)
def test_on_amd(row, run_host):
    run_selftest(run_host, row, AmdHost(cpus=row.cpus, extra=DEVICES.get(row.name, ())))


@pytest.mark.parametrize("row", rows_of("intel"), ids=lambda row: row.name)
def test_on_intel(row, run_host):
    run_selftest(run_host, row, IntelHost(cpus=row.cpus))


def test_on_intel_without_access_bits(run_host):
    """The ioctl says so instead of giving bits that nobody sets."""
    outcome = run_selftest(run_host, ACCESS_BITS, IntelHost(append=("kvm_intel.eptad=0",)))
    assert b"ok 1 EOPNOTSUPP without A/D bits\n" in outcome.stdout


def test_on_intel_with_page_modification_logging(run_host):
    """Where the processor logs dirty pages, clearing their bits must not hide one."""
    logging = "/sys/module/kvm_intel/parameters/pml"
    outcome = run_host(
        "sh", "-c", f'grep -x Y {logging} && exec "$0"', str(ACCESS_BITS.path),
        timeout_s=ACCESS_BITS.timeout_s,
        config=IntelHost(model="corei7_skylake_x", cpus=1, append=APPEND["kvm"],
                         bring=(ACCESS_BITS.path,)))
    print((outcome.stdout + outcome.stderr).decode(errors="replace"))
    assert outcome.status == 0 and outcome.stdout.startswith(b"Y\n")
    assert b" dirty_log.ring.concurrent\n" in outcome.stdout
