# SPDX-License-Identifier: GPL-2.0-or-later
"""Bare guests under the write meter: what it reports of a known number of bytes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .util import BUILD, REPO, HarnessError, Process, Work, poll_until, qemu_binary

PLUGIN = BUILD / "cmake" / "tools" / "write-meter" / "write-meter.so"
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")
MEMORY_MIB = 512
LIMIT_S = 120.0
FINE_POLL_S = 0.002


@dataclass(frozen=True)
class Task:
    """Something a processor of the guest does; see tests/guest/bareguest.c."""

    op: str                                 # "r", "w" or "x"
    start: int
    size: int
    rounds: int = 1
    cpu: int = 0

    def word(self) -> str:
        """For the guest's command line."""
        return f"{self.cpu}:{self.op}:{self.start:#x}:{self.size:#x}:{self.rounds}"


@dataclass
class Report:
    """What the meter's file says."""

    header: dict[str, Any]
    lines: list[dict[str, Any]]
    end: dict[str, Any]
    seconds: float = 0.0                    # from the guest's "begin" to its "end"
    log: str = ""                           # what QEMU and the plugin said
    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.lines:
            name = line["range"]
            self.read[name] = self.read.get(name, 0) + line["read"]
            self.written[name] = self.written.get(name, 0) + line["written"]


@functools.cache
def bare_guest() -> Path:
    """The guest, built if need be."""
    done = subprocess.run([sys.executable, str(REPO / "tests" / "guest" / "build.py"), "--bare"],
                          stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def words(guest: Path, console: Path, tasks: Sequence[Task]) -> list[str]:
    """QEMU's command line, without the meter."""
    found = [str(qemu_binary()), "-nodefaults", "-no-user-config", "-machine", "q35",
             "-accel", "tcg,thread=multi", "-smp", str(1 + max(task.cpu for task in tasks)),
             "-m", f"{MEMORY_MIB}M", "-display", "none", "-vga", "none", "-nic", "none",
             "-no-reboot", "-kernel", str(guest),
             "-append", " ".join(task.word() for task in tasks),
             "-chardev", f"file,id=console,path={console}",
             "-device", "isa-debugcon,iobase=0xe9,chardev=console"]
    for path in FIRMWARE:
        if os.path.isdir(path):
            found += ["-L", path]
    return found


def run_guest(work: Work, name: str, tasks: Sequence[Task], meter: str = "") -> float:
    """Run a guest until it powers off. `meter`: the plugin's arguments. Returns the tasks' seconds.
    """
    console, log = work.logs / f"{name}.console", work.logs / f"{name}.log"
    plugin = ["-plugin", f"{PLUGIN},{meter}"] if meter else []
    process = Process(name, [*words(bare_guest(), console, tasks), *plugin], log)
    def says(text: str) -> bool:
        return not process.alive or (console.exists() and text in console.read_text())

    try:
        poll_until(f"{name} says begin", lambda: says("begin\n"), LIMIT_S, FINE_POLL_S)
        begin = time.monotonic()
        poll_until(f"{name} says end", lambda: says("end\n"), LIMIT_S, FINE_POLL_S)
        seconds = time.monotonic() - begin
        process.wait(LIMIT_S)
    finally:
        process.kill()
    text = console.read_text() if console.exists() else ""
    if text != "begin\nend\n" or process.returncode != 0:
        raise HarnessError(f"the guest said {text!r}; {process.describe()}")
    return seconds


def read_report(path: Path) -> Report:
    """The meter's file."""
    objects = [json.loads(line) for line in path.read_text().splitlines()]
    return Report(objects[0], objects[1:-1], objects[-1])


def measure(work: Work, name: str, tasks: Sequence[Task], ranges: Sequence[str],
            *options: str) -> Report:
    """What the meter says of tasks; options as `sample=1`."""
    out = work.logs / f"{name}.jsonl"
    meter = ",".join((f"out={out}", *(f"range={text}" for text in ranges), *options))
    seconds = run_guest(work, name, tasks, meter)
    report = read_report(out)
    report.seconds = seconds
    report.log = (work.logs / f"{name}.log").read_text()
    return report
