# SPDX-License-Identifier: GPL-2.0-or-later
"""The write meter in the emulated AMD host's QEMU: its tiers are physical ranges of that host."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from emulated import host
from emulated.amd import AmdHost
from emulated.initramfs import REPO

PLUGIN = host.BUILD / "cmake" / "tools" / "write-meter" / "write-meter.so"
BARE_GUEST = REPO / "tests" / "guest" / "build.py"
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")
MIB = 1 << 20
DRAM, DRAM_BYTES = 0x40000000, 16 * MIB
MRAM, MRAM_BYTES = 0x48000000, 64 * MIB
# Of a guest's memory. Whole sections of the host's memory map (128 MiB): in a section that the
# kernel has a part of, KVM takes the reserved part for mapped memory, and its clock page oopses.
SECTION_BYTES = 128 * MIB
CACHE_BYTES = 4 * MIB
LIMIT_S = 600.0


def measured(run_host, logs, command, ranges, **options):
    """What the outer QEMU's meter says of a command: bytes read and written by name, dirty ones
    too; what the command said."""
    assert PLUGIN.exists(), f"{PLUGIN} does not exist; build it (make write-meter)"
    out = logs / "meter.jsonl"
    meter = ",".join((f"{PLUGIN},out={out},size={CACHE_BYTES}",
                      *(f"range={name}:{start:#x}:{size}" for name, start, size in ranges)))
    logs.mkdir(parents=True)
    config = AmdHost(memory_mib=2048, extra=("-plugin", meter), **options)
    outcome = run_host(*command, timeout_s=LIMIT_S, config=config)
    assert outcome.status == 0, outcome.stderr
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    end = lines[-1]
    assert end["untranslated"] == 0
    traffic = {kind: {name: sum(line[kind] for line in lines if line.get("range") == name)
                      for name in end["dirty"]} for kind in ("read", "written")}
    for name, size in end["dirty"].items():
        traffic["written"][name] += size
    return traffic["read"], traffic["written"], outcome.stdout.decode()


def reserved(start, size):
    """For the kernel's command line."""
    return f"memmap={size}${start:#x}"


def test_writes_to_reserved_memory(run_host, logs):
    """What a program of the host writes to ranges that its kernel does not use."""
    _, written, _ = measured(
        run_host, logs,
        ["/usr/bin/python3", str(REPO / "tests" / "hosts" / "sweep_memory.py"),
         f"{DRAM:#x}:{DRAM_BYTES}:5", f"{MRAM:#x}:{MRAM_BYTES}:2"],
        [("dram", DRAM, DRAM_BYTES), ("mram", MRAM, MRAM_BYTES)],
        append=(reserved(DRAM, DRAM_BYTES), reserved(MRAM, MRAM_BYTES)))
    assert written["dram"] == pytest.approx(5 * DRAM_BYTES, rel=0.03)
    assert written["mram"] == pytest.approx(2 * MRAM_BYTES, rel=0.03)
    assert written["other"] > 0         # the host itself


def test_a_guest_under_kvm(run_host, logs):
    """What a guest of the host's KVM touches in its memory, a physical range of the host."""
    done = subprocess.run([sys.executable, str(BARE_GUEST), "--bare"], stdout=subprocess.PIPE,
                          text=True, check=True)
    half, quarter = MRAM + 32 * MIB, 16 * MIB
    inner = [str(REPO / (os.environ.get("KINTSUGI_QEMU") or "build/qemu-build/qemu-system-x86_64")),
             "-nodefaults", "-no-user-config", "-machine", "q35,memory-backend=memory",
             "-accel", "kvm", "-m", "64M", "-object",
             f"memory-backend-file,id=memory,size=64M,mem-path=/dev/mem,offset={MRAM:#x},share=on",
             "-display", "none", "-vga", "none", "-nic", "none", "-no-reboot",
             "-kernel", done.stdout.strip(),
             "-append", f"0:w:0x2000000:{quarter:#x}:3 0:r:0x1000000:{quarter:#x}:1",
             "-chardev", "stdio,id=console,signal=off",
             "-device", "isa-debugcon,iobase=0xe9,chardev=console"]
    for path in FIRMWARE:
        inner += ["-L", path]
    read, written, text = measured(
        run_host, logs, inner,
        [("readonly", MRAM, half - MRAM), ("swept", half, quarter),
         ("rest", half + quarter, quarter)],
        cpus=2, append=(reserved(MRAM, SECTION_BYTES),))
    assert text.endswith("begin\nend\n")
    assert written["swept"] == pytest.approx(3 * quarter, rel=0.03)
    assert read["readonly"] == pytest.approx(quarter, rel=0.1)  # and firmware and code
    assert written["readonly"] + written["rest"] < quarter / 10
