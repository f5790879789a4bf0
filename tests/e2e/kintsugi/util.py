# SPDX-License-Identifier: GPL-2.0-or-later
"""Deadlines, paths and processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

REPO = Path(__file__).resolve().parents[3]
BUILD = REPO / "build"
POLL_S = 0.01
PAGE_BYTES = 4096
MIB = 1024 * 1024

T = TypeVar("T")


def stop_process(pid: int) -> None:
    """SIGSTOP a child, and wait until it has stopped or ended: a signal is felt later than sent."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class HarnessError(Exception):
    """The harness or what it runs did not do what was asked; the text says where to look."""


class DeadlineError(HarnessError):
    """Something did not happen in time."""


class Deadline:
    """A point in time until which something may be waited for.

    On an emulated host all is slower by this factor, waiting too: KINTSUGI_PATIENCE.
    """

    PATIENCE = float(os.environ.get("KINTSUGI_PATIENCE", "1"))

    def __init__(self, seconds: float) -> None:
        seconds *= self.PATIENCE
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return self.left_s == 0.0


def poll_until(what: str, condition: Callable[[], T | None], seconds: float,
               interval_s: float = POLL_S) -> T:
    """Call `condition` until it returns something true, and return that.

    For state that has no event to wait for. Raises DeadlineError, naming `what`.
    """
    deadline = Deadline(seconds)
    while True:
        result = condition()
        if result:
            return result
        if deadline.over:
            raise DeadlineError(f"not within {seconds:g} s: {what}")
        time.sleep(interval_s)


def qemu_binary() -> Path:
    """The QEMU under test."""
    return Path(os.environ.get("KINTSUGI_QEMU") or BUILD / "qemu-build" / "qemu-system-x86_64")


def stock_qemu_binary() -> Path:
    """The unpatched QEMU to compare with."""
    return Path(os.environ.get("KINTSUGI_QEMU_STOCK")
                or BUILD / "qemu-stock-build" / "qemu-system-x86_64")


def memserver_binary() -> Path:
    """The memory server under test."""
    return Path(os.environ.get("KINTSUGI_MEMSERVER")
                or BUILD / "cmake" / "memserver" / "memserver")


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"({error})"
    return "\n".join(text.splitlines()[-lines:])


class Work:
    """Where one test or run keeps its files.

    `logs` is kept. `temp` is private, short enough for unix socket paths, and removed by close().
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.watched: list[Callable[[], str]] = []   # each tells the state of something alive
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        self.temp = Path(tempfile.mkdtemp(prefix="kg-"))

    def write_state(self) -> Path:
        """After a failure, note how everything that still lives is."""
        path = self.logs / "state.txt"
        path.write_text("\n\n".join(describe() for describe in self.watched) + "\n")
        return path

    def close(self) -> None:
        """Remove the temporary files."""
        shutil.rmtree(self.temp, ignore_errors=True)


class Process:
    """A child that is ended and reaped by its own pid, and dies if we die first."""

    def __init__(self, name: str, arguments: Sequence[str | Path], log: Path,
                 pass_fds: Sequence[int] = ()) -> None:
        self.name = name
        self.log = log
        self.arguments = [str(argument) for argument in arguments]
        wrapper = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with log.open("ab") as out:
            out.write(("+ " + " ".join(self.arguments) + "\n").encode())
            out.flush()
            try:
                self._popen = subprocess.Popen(
                    [*wrapper, *self.arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    pass_fds=tuple(pass_fds))
            except OSError as error:
                raise HarnessError(f"cannot start {name}: {error}") from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.returncode is None

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.alive:
            self._popen.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP, if it still runs: no thread of it runs when this returns."""
        if self.alive:
            stop_process(self._popen.pid)

    def wait(self, seconds: float) -> int:
        """Wait for its end and return its exit status."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"{self.name} did not end within {seconds:g} s") from None

    def kill(self) -> None:
        """End it at once."""
        if self.alive:
            self._popen.kill()
        self._popen.wait()

    def describe(self) -> str:
        """How it is, and the end of its log."""
        state = "runs" if self.alive else f"ended with status {self.returncode}"
        return f"{self.name} {state}; the end of {self.log}:\n{tail(self.log)}"
