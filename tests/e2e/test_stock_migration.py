# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain migration still works in the fork, and the harness tells right memory from wrong."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kintsugi.console import GuestError
from kintsugi.migrate import (Phase, complete, go_on, hold_in, prepare, start_stock, unhold,
                              use_multifd, wait_end, wait_phase)
from kintsugi.util import PAGE_BYTES
from kintsugi.vm import Vm, VmConfig

StartVm = Callable[..., Vm]
PAGE_MAGIC = bytes.fromhex("0000474b")  # bytes 4 to 7 of a data page
PHASES = (Phase.FIRST_PASS, Phase.ITERATION, Phase.BEFORE_COMPLETION)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_precopy(vms: StartVm, config: VmConfig, transport: str) -> None:
    source, destination = vms("source", config), vms("destination", config, incoming=True)
    prepare(source, destination)
    start_stock(source, destination.listen(transport))
    complete(source, destination)
    destination.guest.wait_beats()
    destination.guest.verify()
    assert source.status() == "postmigrate"


def test_multifd(vms: StartVm, config: VmConfig) -> None:
    source, destination = vms("source", config), vms("destination", config, incoming=True)
    prepare(source, destination)
    use_multifd(4, source, destination)
    start_stock(source, destination.listen())
    complete(source, destination)
    destination.guest.verify()


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.value)
@pytest.mark.parametrize("fault", ["cancel", "destination-dies"])
def test_failure_leaves_source_running(vms: StartVm, config: VmConfig, phase: Phase,
                                       fault: str) -> None:
    source, destination = vms("source", config), vms("destination", config, incoming=True)
    prepare(source, destination)
    hold_in(source, phase)
    start_stock(source, destination.listen())
    wait_phase(source, phase)
    if fault == "cancel":
        source.qmp.execute("migrate_cancel")
    else:
        destination.kill()
        go_on(source)
    assert wait_end(source)["status"] == ("cancelled" if fault == "cancel" else "failed")
    unhold(source)
    source.wait_status("running")
    source.guest.wait_beats()
    source.guest.verify()


def guest_ram(vm: Vm) -> mmap.mmap:
    """The guest's RAM, which must be a memfd, behind its back."""
    for entry in Path(f"/proc/{vm.process.pid}/fd").iterdir():
        if "memfd:memory-backend" in os.readlink(entry):
            with entry.open("r+b") as file:
                return mmap.mmap(file.fileno(), vm.config.ram_bytes)
    raise AssertionError("the guest's RAM is not a memfd")


def pattern_pages(ram: mmap.mmap, count: int) -> list[int]:
    """Offsets of some data pages of the pattern (see write_page() in patternguest.c)."""
    found = []
    for offset in range(0, len(ram), PAGE_BYTES):
        if ram[offset + 4:offset + 8] == PAGE_MAGIC and ram[offset + 12:offset + 16] == bytes(4):
            found.append(offset)
            if len(found) == count:
                break
    assert len(found) == count
    return found


@pytest.mark.parametrize("fault", ["flipped-byte", "lost", "foreign", "stale"])
def test_guest_finds_a_wrong_page(vms: StartVm, config: VmConfig, fault: str) -> None:
    """Damage one page, and see the guest find exactly that: else all other tests prove nothing."""
    vm = vms("source", replace(config, ram="shared").with_guest(zeroflip=0, coldwrite=100))
    vm.guest.hold()
    vm.guest.verify()
    ram = guest_ram(vm)
    page, other = pattern_pages(ram, 2)
    content = ram[page:page + PAGE_BYTES]
    if fault == "flipped-byte":
        content = content[:2049] + bytes([content[2049] ^ 0x40]) + content[2050:]
    elif fault == "lost":
        content = bytes(PAGE_BYTES)
    elif fault == "foreign":
        content = ram[other:other + PAGE_BYTES]
    else:
        vm.guest.go()
        vm.guest.wait_passes(2)
        vm.guest.hold()
        assert content != ram[page:page + PAGE_BYTES]
    ram[page:page + PAGE_BYTES] = content
    ram.close()
    with pytest.raises(GuestError, match="1 bad pages"):
        vm.guest.verify()
    assert len(vm.guest.errors()) == 1
    assert {"flipped-byte": "bad_words=1 ", "lost": "found=all-zero", "foreign": "found=page:",
            "stale": "found=page:"}[fault] in vm.guest.errors()[0]
