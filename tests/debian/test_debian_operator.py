# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator does with a split Debian guest: stop, reset, dump, snapshots."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from debian import (BOOT_S, FILES, FIO_KEPT, OPT, DebianSetup, check_content, check_files, qemu_img,
                    served)
from kintsugi.util import PAGE_BYTES

MakeSetup = Callable[..., DebianSetup]
STOPS = 5
SNAPSHOT_S = 240.0
PT_LOAD = 1


@pytest.fixture
def split_setup(make_setup: MakeSetup) -> DebianSetup:
    """A guest that was split under load, and runs on; fio's blocks are on the data disk."""
    setup = make_setup(aio="native", iothread=True)
    split_under_load(setup)
    return setup


def split_under_load(setup: DebianSetup) -> None:
    """Split it while its loads run; they run on."""
    setup.debian.run(f"{OPT}/fioload.py write {FIO_KEPT}")
    setup.load.start(setup.debian)
    setup.load.wait_progress(setup.debian)
    setup.split()


def disk_operations(setup: DebianSetup) -> list[int]:
    """Reads and writes of each disk so far."""
    return [disk["stats"][key] for disk in setup.vm.qmp.execute("query-blockstats")
            for key in ("rd_operations", "wr_operations")]


def test_stop_and_cont(split_setup: DebianSetup) -> None:
    """Again and again, with requests on their way to disks and network each time."""
    setup = split_setup
    qmp = setup.vm.qmp
    for _ in range(STOPS):
        qmp.execute("stop")
        assert setup.vm.status() == "paused"
        # What was on its way to the disks is done, and nothing new comes.
        before = disk_operations(setup)
        assert disk_operations(setup) == before
        qmp.execute("cont")
        setup.vm.wait_status("running")
        setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    setup.check_paged()
    check_content(setup.debian, setup.load)


@pytest.mark.parametrize("how", ["reboot", "system_reset"])
def test_reboot(split_setup: DebianSetup, how: str) -> None:
    """A split guest boots again where it is; what it had on its disks is there."""
    setup = split_setup
    setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    setup.debian.run("sync")
    boot = setup.debian.run("cat /proc/sys/kernel/random/boot_id")
    setup.vm.qmp.poll_events()
    if how == "reboot":
        setup.debian.run("systemctl --no-block reboot")
    else:
        setup.vm.qmp.execute("system_reset")
    guest = how == "reboot"
    setup.vm.qmp.wait_event("RESET", BOOT_S, lambda data: data["guest"] == guest)
    setup.debian.wait_up(BOOT_S)
    assert setup.debian.run("cat /proc/sys/kernel/random/boot_id") != boot
    check_content(setup.debian, setup.load)
    # And it works as a guest that was never split.
    setup.load.start(setup.debian)
    setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    setup.check_paged()
    check_content(setup.debian, setup.load)


def pages_in_dump(path: Path) -> set[bytes]:
    """All pages of the PT_LOAD segments of an ELF file, but those of zeroes."""
    zero = bytes(PAGE_BYTES)
    found: set[bytes] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        assert data[:5] == b"\x7fELF\x02"
        offset, = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        for index in range(count):
            kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", data,
                                                              offset + index * size)
            if kind != PT_LOAD:
                continue
            for at in range(start, start + length, PAGE_BYTES):
                page = data[at:at + PAGE_BYTES]
                if page != zero:
                    found.add(page)
    return found


def test_dump(split_setup: DebianSetup) -> None:
    """A dump of a split guest has what is on servers too: each page of the files it caches."""
    setup = split_setup
    setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    check_files(setup.debian)
    path = setup.disks.root.parent / "dump"
    setup.vm.qmp.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{path}"}, 180)
    setup.vm.wait_status("running")
    found = pages_in_dump(path)
    path.unlink()
    missing = sum(served(index)[at:at + PAGE_BYTES] not in found
                  for index in range(FILES) for at in range(0, len(served(index)), PAGE_BYTES))
    assert missing == 0
    setup.check_paged()
    check_content(setup.debian, setup.load)


def snapshot(setup: DebianSetup, command: str) -> str:
    """What savevm or loadvm says: nothing if all is well. The monitor waits for it."""
    return str(setup.vm.qmp.execute("human-monitor-command", {"command-line": command},
                                    SNAPSHOT_S)).strip()


def test_savevm(make_setup: MakeSetup) -> None:
    """A snapshot of a split guest in its qcow2 disks, which goes on and can be gone back to."""
    # savevm reads all of the memory, so what the guest needs has to come back after it.
    setup = make_setup(data_format="qcow2", aio="threads", main_percent=75)
    split_under_load(setup)
    setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    assert snapshot(setup, "savevm one") == ""
    kept = list(setup.load.database)
    setup.vm.wait_status("running")
    setup.load.start(setup.debian)
    setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    check_content(setup.debian, setup.load)
    assert "one" in qemu_img("snapshot", "-l", "-U", setup.disks.root)
    assert snapshot(setup, "loadvm one") == ""
    setup.load.database = kept
    check_content(setup.debian, setup.load)
