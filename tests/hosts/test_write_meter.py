# SPDX-License-Identifier: GPL-2.0-or-later
"""The write meter in the emulated AMD host's QEMU: its tiers are physical ranges of that host."""

from __future__ import annotations

import json

import pytest
from emulated import host
from emulated.amd import AmdHost
from emulated.initramfs import REPO

PLUGIN = host.BUILD / "cmake" / "tools" / "write-meter" / "write-meter.so"
MIB = 1 << 20
DRAM, DRAM_BYTES = 0x40000000, 16 * MIB
MRAM, MRAM_BYTES = 0x48000000, 64 * MIB
CACHE_BYTES = 4 * MIB
LIMIT_S = 300.0


def test_writes_to_reserved_memory(run_host, logs):
    """What a program of the host writes to ranges that its kernel does not use."""
    assert PLUGIN.exists(), f"{PLUGIN} does not exist; build it (make write-meter)"
    out = logs / "meter.jsonl"
    config = AmdHost(
        memory_mib=2048,
        append=(f"memmap={DRAM_BYTES}${DRAM:#x}", f"memmap={MRAM_BYTES}${MRAM:#x}"),
        extra=("-plugin", f"{PLUGIN},out={out},size={CACHE_BYTES},range=dram:{DRAM:#x}:{DRAM_BYTES},"
                          f"range=mram:{MRAM:#x}:{MRAM_BYTES}"))
    logs.mkdir(parents=True)
    outcome = run_host("/usr/bin/python3", str(REPO / "tests" / "hosts" / "sweep_memory.py"),
                       f"{DRAM:#x}:{DRAM_BYTES}:5", f"{MRAM:#x}:{MRAM_BYTES}:2",
                       timeout_s=LIMIT_S, config=config)
    assert outcome.status == 0, outcome.stderr
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    written = {name: sum(line["written"] for line in lines if line.get("range") == name)
               for name in ("dram", "mram", "other")}
    end = lines[-1]
    assert written["dram"] + end["dirty"]["dram"] == pytest.approx(5 * DRAM_BYTES, rel=0.03)
    assert written["mram"] + end["dirty"]["mram"] == pytest.approx(2 * MRAM_BYTES, rel=0.03)
    assert written["other"] > 0         # the host itself
    assert end["untranslated"] == 0
