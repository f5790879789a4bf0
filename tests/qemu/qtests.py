# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own test programs: which are run, what cases they have, how one case ends.

A case runs in a process of its own, as the first assertion that fails ends a program of GLib's
testing framework. The programs print TAP, see glib's g_test_init().
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "qemu" / "programs.txt"
FORK, STOCK = ROOT / "build" / "qemu-build", ROOT / "build" / "qemu-stock-build"
KVM = Path("/dev/kvm")
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu")
QEMU = "qemu-system-x86_64"   # the tests take the architecture from the name
LIST_LIMIT_S = 60
SHOWN_LINES_MAX = 60
TAP_RE = re.compile(r"^\s*(not )?ok \d+ (\S+)(?: +# [A-Z]+\b *(.*))?", re.M)
# A read-only file in the place of the device: neither a test's access() nor QEMU finds it usable.
WITHOUT_KVM = f"""
mount --bind "$1" {KVM} && mount -o remount,bind,ro {KVM} && shift && exec "$@"
"""


class QtestError(Exception):
    """A program or the table is not as it should be; the text says how."""


@dataclass(frozen=True)
class Program:
    """One line of the table."""

    target: str                  # of ninja, and its path below the build tree
    limit_s: float               # for one case
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One case of a program, by GLib's path of it."""

    program: Program
    path: str
    below: tuple[str, ...] = ()  # cases with a path below it, which GLib would run with it

    @property
    def name(self) -> str:
        """For people, and for pytest's -k."""
        return f"{Path(self.program.target).name}:{self.path}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended; `why` says why it failed or was skipped."""

    verdict: str                 # "passed", "failed" or "skipped"
    why: str
    output: str

    @property
    def end(self) -> str:
        """The last lines of what it printed."""
        return "\n".join(self.output.splitlines()[-SHOWN_LINES_MAX:])


def parse_table(text: str) -> list[Program]:
    """The lines of a table; QtestError names one that is wrong."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) < 2 or not re.fullmatch(r"[1-9]\d*", words[1]):
            raise QtestError(f"programs.txt:{number}: not a program and its limit in seconds")
        rows.append(Program(words[0], float(words[1]), tuple(words[2:])))
    if len({row.target for row in rows}) < len(rows):
        raise QtestError("programs.txt: the same program twice")
    return rows


def read_table(path: Path = TABLE) -> list[Program]:
    """The table of the repository."""
    return parse_table(path.read_text(encoding="utf-8"))


def judge(status: int, output: str) -> Outcome:
    """The outcome of a program that ended by itself, from its exit status and what it printed."""
    results = TAP_RE.findall(output)
    bad = [path for failed, path, why in results if failed and not why]
    if status < 0:
        return Outcome("failed", f"ended by {signal.Signals(-status).name}", output)
    if status:
        return Outcome("failed", f"ended with exit status {status}", output)
    if bad:
        return Outcome("failed", f"not ok: {', '.join(bad)}", output)
    if not results:
        return Outcome("failed", "ran no test", output)
    skips = [why for _, _, why in results if why]
    if len(skips) == len(results):
        return Outcome("skipped", skips[0], output)
    return Outcome("passed", "", output)


class Runner:
    """Runs programs of one build tree under TCG: KVM, if the machine has it, is hidden."""

    def __init__(self, build: Path) -> None:
        self.build = build

    def cases(self, program: Program) -> list[Case]:
        """All cases of a program, as it lists them."""
        status, output = self._run(program, ["-l"], LIST_LIMIT_S)
        paths = [line for line in output.splitlines() if line.startswith("/")]
        if status or not paths:
            raise QtestError(f"{self.build / program.target} lists no test (status {status}):\n"
                             f"{output}")
        return [Case(program, path, tuple(other for other in paths
                                          if other.startswith(path + "/"))) for path in paths]

    def run(self, case: Case) -> Outcome:
        """Run one case."""
        limit_s = case.program.limit_s
        skips = [word for path in case.below for word in ("-s", path)]
        status, output = self._run(case.program, ["--tap", "-k", "-p", case.path, *skips], limit_s)
        if status is None:
            return Outcome("failed", f"not done after {limit_s:g} s", output)
        return judge(status, output)

    def hides_kvm(self) -> str | None:
        """None if programs cannot use KVM, otherwise what was said."""
        status, output = self._spawn(["sh", "-c", f"test ! -w {KVM}"], LIST_LIMIT_S)
        return None if status == 0 else output or f"{KVM} can be written to all the same"

    def _run(self, program: Program, arguments: list[str],
             limit_s: float) -> tuple[int | None, str]:
        command = [str(self.build / program.target), *program.arguments, *arguments]
        return self._spawn(command, limit_s)

    def _spawn(self, command: list[str], limit_s: float) -> tuple[int | None, str]:
        """Exit status, None if it had to be ended, and all that it printed."""
        # Short: sockets are made below it.
        temp = Path(tempfile.mkdtemp(prefix="qtest-"))
        try:
            self._make_qemu(temp / QEMU)
            if os.access(KVM, os.R_OK | os.W_OK):
                empty = temp / "no-kvm"
                empty.touch()
                user = [] if os.geteuid() == 0 else ["--map-root-user"]
                command = ["unshare", "--mount", *user, "sh", "-ec", WITHOUT_KVM, "sh",
                           str(empty), *command]
            # Not to be left over either where this process is killed.
            command = ["setpriv", "--pdeathsig", "KILL", *command]
            with open(temp / "output", "w+b") as output, subprocess.Popen(
                    command, cwd=self.build, env=self._environment(temp), start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output) as child:
                try:
                    status: int | None = child.wait(limit_s)
                except BaseException as error:
                    # With its QEMUs, which are in the same session and group.
                    os.killpg(child.pid, signal.SIGKILL)
                    if not isinstance(error, subprocess.TimeoutExpired):
                        raise
                    status = None
                output.seek(0)
                return status, output.read().decode(errors="replace")
        finally:
            shutil.rmtree(temp, ignore_errors=True)

    def _make_qemu(self, at: Path) -> None:
        """A script that runs the build tree's QEMU, which has no firmware there, with Debian's."""
        words = [str(self.build / QEMU), *(word for path in FIRMWARE for word in ("-L", path))]
        at.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        at.chmod(0o755)

    def _environment(self, temp: Path) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "LC_ALL": "C", "TMPDIR": str(temp), "PYTHON": "/usr/bin/python3",
                "QTEST_QEMU_BINARY": str(temp / QEMU), "QTEST_QEMU_IMG": "./qemu-img",
                "QTEST_QEMU_STORAGE_DAEMON_BINARY": "./storage-daemon/qemu-storage-daemon",
                "G_TEST_SRCDIR": str(self.build.with_name(
                    self.build.name.removesuffix("-build")) / "tests/unit"),
                "G_TEST_BUILDDIR": str(self.build / "tests/unit")}
