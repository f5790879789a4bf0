# SPDX-License-Identifier: GPL-2.0-or-later
"""The write meter in QEMU, by a guest whose every access is known.

The guest's processors write each 4 bytes of a range one after the other, so that each round over a
range larger than the cache reads and writes each line of it once.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from kintsugi.meter import PLUGIN, Task, bare_guest, measure, words
from kintsugi.util import MIB, PAGE_BYTES, Process, Work, poll_until

CACHE = 4 * MIB
DRAM, MRAM = 0x4000000, 0x8000000
SIZE = 16 * MIB                         # four times the cache
RANGES = (f"dram:{DRAM:#x}:{SIZE}", f"mram:{MRAM:#x}:{SIZE}")
PARTS_MAX = 1 / 50                      # how far off the truth a figure may be


@pytest.fixture(autouse=True)
def plugin_exists() -> None:
    """Fail with one clear message when it is not built."""
    assert PLUGIN.exists(), f"{PLUGIN} does not exist; build it (make write-meter)"


def about(size: int) -> object:
    """`size`, within PARTS_MAX."""
    return pytest.approx(size, rel=PARTS_MAX)


@pytest.mark.parametrize("sample", [1, 8])
@pytest.mark.parametrize("policy", ["lru", "plru"])
def test_reads_and_writes_apart(work: Work, sample: int, policy: str) -> None:
    tasks = [Task("w", MRAM, SIZE, 3), Task("r", DRAM, SIZE, 2)]
    report = measure(work, "guest", tasks, RANGES, f"size={CACHE}", f"sample={sample}",
                     f"policy={policy}")
    # The reads that came after have driven everything out.
    assert report.written["mram"] == about(3 * SIZE)
    assert report.read["mram"] == about(3 * SIZE)
    assert report.read["dram"] == about(2 * SIZE)
    assert report.written["dram"] == 0
    assert sum(report.end["dirty"].values()) <= CACHE / 50
    # Firmware, the guest's own code and its stack.
    assert report.read["other"] < SIZE / 10
    assert report.end["untranslated"] == 0 and "invalid use" not in report.log
    # The tasks' and the firmware's.
    assert 1 < report.end["sampled"] * sample / (5 * SIZE / 4) < 1.5


def test_what_fits_into_the_cache_is_written_once(work: Work) -> None:
    report = measure(work, "guest", [Task("w", MRAM, CACHE // 2, 50)], RANGES, f"size={CACHE}",
                     "sample=1")
    assert report.read["mram"] == about(CACHE // 2)
    # Of 50 times as much that the guest wrote.
    assert report.written["mram"] + report.end["dirty"]["mram"] == about(CACHE // 2)
    assert report.written["mram"] < CACHE / 50


def test_an_access_across_lines_touches_both(work: Work) -> None:
    tasks = [Task("x", MRAM, SIZE, 2), Task("r", DRAM, SIZE)]
    for sample in (1, 8):
        report = measure(work, f"sample-{sample}", tasks, RANGES, f"size={CACHE}",
                         f"sample={sample}")
        assert report.written["mram"] == about(2 * SIZE)


def test_two_processors(work: Work) -> None:
    """Both at once, each in its own range, one of them over less."""
    tasks = [Task("w", DRAM, SIZE // 2, 3), Task("w", MRAM, SIZE, 3, cpu=1)]
    for sample in (1, 8):
        report = measure(work, f"sample-{sample}", tasks, RANGES, f"size={CACHE}",
                         f"sample={sample}")
        for name, size in (("dram", SIZE // 2), ("mram", SIZE)):
            assert report.written[name] + report.end["dirty"][name] == about(3 * size)
            assert report.read[name] == about(3 * size)
        assert report.end["io"] > 0     # processor 1 is started by its APIC


def test_without_write_allocate(work: Work) -> None:
    report = measure(work, "guest", [Task("w", MRAM, SIZE, 2)], RANGES, f"size={CACHE}",
                     "write-allocate=off")
    assert report.written["mram"] == about(2 * SIZE)
    assert report.read["mram"] == 0


def test_intervals_and_pages(work: Work) -> None:
    """Intervals add up; each page of the range is written alike, and no other."""
    pages = work.logs / "pages"
    report = measure(work, "guest", [Task("w", MRAM, SIZE, 4), Task("r", DRAM, SIZE)], RANGES,
                     f"size={CACHE}", "interval=0.05", f"pages={pages}")
    times = [line["time"] for line in report.lines if line["range"] == "mram"]
    assert len(times) > 2 and times == sorted(times)
    assert {line["range"] for line in report.lines} == {"dram", "mram", "other"}
    assert len(report.lines) == 3 * len(times)
    text = pages.read_text().splitlines()
    assert text[0] == "kintsugi-page-writes 1"
    assert [line.split()[1] for line in text if line.startswith("interval")] == [
        f"{time:.3f}" for time in times]
    written: dict[int, int] = {}
    for line in text:
        if line.startswith("0x"):
            frame, size = line.split()
            written[int(frame, 16)] = written.get(int(frame, 16), 0) + int(size)
    first = MRAM // PAGE_BYTES
    assert set(written) == set(range(first, first + SIZE // PAGE_BYTES))
    assert set(written.values()) == {4 * PAGE_BYTES}


@pytest.mark.parametrize("arguments,message", [
    ("range=dram:0:4K", "out= is missing"),
    ("out={logs}/m,size=3M", "size=3 MiB must be"),
    ("out={logs}/m,range=a:0:8K,range=b:4K:4K", "overlaps"),
    ("out={logs}/no/such/m", "cannot create"),
    ("out={logs}/m,pages={logs}/p", "pages= needs ranges"),
])
def test_what_cannot_be_is_refused(work: Work, arguments: str, message: str) -> None:
    command = words(PLUGIN, work.logs / "console", [Task("r", MRAM, SIZE)])
    done = subprocess.run([*command, "-plugin", f"{PLUGIN},{arguments.format(logs=work.logs)}"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
                          check=False)
    assert done.returncode == 1
    assert "write-meter: " in done.stdout and message in done.stdout


def test_a_file_that_breaks_does_not_end_the_guest(work: Work) -> None:
    pipe, console = work.temp / "pipe", work.logs / "console"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    tasks = [Task("w", MRAM, SIZE, 8)]
    process = Process("guest", [*words(bare_guest(), console, tasks), "-plugin",
                                f"{PLUGIN},out={pipe},interval=0.01"], work.logs / "guest.log")
    try:
        poll_until("the guest has begun",
                   lambda: console.exists() and console.read_text() == "begin\n", 60, 0.002)
        os.close(reader)
        assert process.wait(120) == 0
    finally:
        process.kill()
    assert console.read_text() == "begin\nend\n"
    assert f"write-meter: cannot write {pipe}: Broken pipe" in (work.logs / "guest.log").read_text()
