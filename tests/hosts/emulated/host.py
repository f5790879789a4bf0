# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot an emulated host, run one command in it, tell what came of it.

What is the same for every kind of host. The kinds are amd.AmdHost and intel.IntelHost.
"""

from __future__ import annotations

import abc
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

from .initramfs import REPO

BUILD = REPO / "build"
# The last three: emulated processors may get no time for long, and nothing is wrong then.
KERNEL_ARGUMENTS = ("console=ttyS0,115200", "panic=-1", "oops=panic", "random.trust_cpu=on",
                    "no_timer_check", "tsc=reliable", "rcupdate.rcu_cpu_stall_timeout=300")
POWER_OFF_S = 20.0
TAIL_LINES = 30
PANIC_RE = re.compile(r"Kernel panic - not syncing: (.*)")
# What a kernel says when it finds itself wrong, and goes on.
COMPLAINT_RE = re.compile(
    r"^(?:\[[ 0-9.]*\] )?(?:\w+: )?(?:WARNING: |BUG: |UBSAN: |INFO: (?:rcu|task|trying) ?)")
STATUS_TIMEOUT, STATUS_HOST = 124, 125


class HostError(Exception):
    """The host did not do what was asked; the text says why and where to look."""


class HostTimeout(HostError):
    """The command, or the boot before it, took too long."""


class HostPanic(HostError):
    """The kernel of the host panicked."""


def kernel() -> Path:
    """The kernel to boot."""
    return REPO / (os.environ.get("KINTSUGI_HOST_KERNEL") or "build/kernel/bzImage")


@dataclass(frozen=True)
class HostConfig(abc.ABC):
    """A host to boot. The kinds of hosts say what machine it is and what is in its root."""

    name: ClassVar[str]                   # the command finds it in KINTSUGI_HOST
    emulator: ClassVar[str]
    noise: ClassVar[str] = ""             # lines of the emulator that say nothing have this
    known: ClassVar[str] = ""             # a complaint of the kernel about this machine has this

    kernel: Path = field(default_factory=kernel)
    memory_mib: int = 1024
    cpus: int = 2
    append: tuple[str, ...] = ()          # more words for the kernel's command line
    extra: tuple[str, ...] = ()           # more for the emulator

    def missing(self) -> str:
        """Why this host cannot be booted, if so."""
        return "" if self.kernel.exists() else f"{self.kernel} does not exist (`make kernel`)"

    def kernel_command_line(self) -> str:
        """All words."""
        return " ".join((*KERNEL_ARGUMENTS, *self.append))

    @abc.abstractmethod
    def arguments(self, task: Task, temp: Path, console: Path,
                  ports: Mapping[str, int]) -> list[str]:
        """The emulator's command line. It may put files into `temp`. The kernel's log goes to
        `console`, and what comes from the ports "status", "out" and "err" to these files."""


@dataclass(frozen=True)
class Task:
    """What is to be done in a host."""

    command: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    tty: bool                             # the command gets our terminal

    def records(self) -> list[tuple[str, str]]:
        """For init, see tests/hosts/init.c."""
        found = [("cwd", str(self.cwd))]
        found += [("env", f"{key}={value}") for key, value in self.env.items()]
        found += [("tty", "1")] if self.tty else []
        return found + [("arg", word) for word in self.command]


@dataclass
class Outcome:
    """How a command ended in a host."""

    status: int
    stdout: bytes
    stderr: bytes
    console: Path
    known: str = ""

    def complaints(self) -> list[str]:
        """Lines of the kernel's log in which it finds fault with itself."""
        text = self.console.read_text(errors="replace")
        return [line for line in text.splitlines() if COMPLAINT_RE.match(line)
                and not (self.known and self.known in line)]


def default_environment(name: str) -> dict[str, str]:
    """What every command gets in that kind of host."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"),
            "KINTSUGI_HOST": name}


def _tail(path: Path, noise: str = "") -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"({error})"
    if noise:
        lines = [line for line in lines if noise not in line]
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])


class _Run:
    """One boot."""

    def __init__(self, config: HostConfig, logs: Path) -> None:
        self.config = config
        self.console = logs / "console.log"
        self.emulator_log = logs / f"{config.emulator}.log"
        self.status = b""
        logs.mkdir(parents=True, exist_ok=True)
        self.console.write_bytes(b"")

    def start(self, task: Task, temp: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
        """Starts the emulator; `ports` are the files it writes to."""
        words = self.config.arguments(task, temp, self.console, ports)
        wrapper = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self.emulator_log.open("wb") as log:
            log.write((" ".join(words) + "\n").encode())
            log.flush()
            try:
                return subprocess.Popen(
                    [*wrapper, *words], stdin=None if task.tty else subprocess.DEVNULL,
                    stdout=None if task.tty else log, stderr=log, pass_fds=ports.values())
            except OSError as error:
                raise HostError(f"cannot start {words[0]}: {error}") from error

    def pump(self, sinks: dict[int, Callable[[bytes], object]], deadline: float | None) -> bool:
        """Hands on what comes until every file is at its end; False if the deadline came first."""
        with selectors.DefaultSelector() as selector:
            for ours, sink in sinks.items():
                selector.register(ours, selectors.EVENT_READ, sink)
            while selector.get_map():
                if self.done() and deadline is not None:
                    deadline = min(deadline, time.monotonic() + POWER_OFF_S)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 65536)
                    if data:
                        key.data(data)
                    else:
                        selector.unregister(key.fd)
        return True

    def add_status(self, data: bytes) -> None:
        self.status += data

    def done(self) -> re.Match[bytes] | None:
        return re.search(rb"^exit (\d+)\n", self.status, re.M)

    def error(self, timeout_s: float | None, ended: bool) -> HostError:
        """Why there is no exit status."""
        text = self.console.read_text(errors="replace")
        where = f"the end of {self.console}:\n{_tail(self.console)}"
        panic = PANIC_RE.search(text)
        if panic:
            return HostPanic(f"the host's kernel panicked: {panic[1]}; {where}")
        if not ended:
            state = "the command" if b"started" in self.status else "the host's boot"
            return HostTimeout(f"{state} was not done after {timeout_s:g} s; {where}")
        failed = re.search(rb"^error (.*)", self.status, re.M)
        if failed:
            return HostError(f"the host could not be set up: {failed[1].decode()}; {where}")
        return HostError(f"the host ended without an exit status; {where}\n"
                         f"the end of {self.emulator_log}:\n"
                         f"{_tail(self.emulator_log, self.config.noise)}")


def run(command: Sequence[str], config: HostConfig, *, logs: Path,
        timeout_s: float | None = 300.0, cwd: Path | None = None,
        env: Mapping[str, str] | None = None, tty: bool = False,
        stdout: BinaryIO | None = None, stderr: BinaryIO | None = None) -> Outcome:
    """Boot a host and run `command` in it.

    `logs` gets console.log and the emulator's log. What the command prints is returned, or copied
    to `stdout` and `stderr` as it comes. With `tty` it talks to our terminal instead. Raises
    HostTimeout, HostPanic or another HostError if there is no exit status of the command.
    """
    if missing := config.missing():
        raise HostError(missing)
    variables = {**default_environment(config.name), **(env or {})}
    task = Task(command, cwd or Path.cwd(), variables, tty)
    boot = _Run(config, logs)
    taken = {"out": b"", "err": b""}
    pipes = {name: os.pipe() for name in (("status",) if tty else ("status", "out", "err"))}

    def sink(name: str, stream: BinaryIO | None) -> Callable[[bytes], object]:
        def keep(data: bytes) -> None:
            taken[name] += data

        def copy(data: bytes) -> None:
            stream.write(data)
            stream.flush()
        return keep if stream is None else copy

    sinks = {pipes["status"][0]: boot.add_status}
    if not tty:
        sinks[pipes["out"][0]] = sink("out", stdout)
        sinks[pipes["err"][0]] = sink("err", stderr)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory(prefix="kg-host-") as temp:
        child = None
        try:
            try:
                child = boot.start(task, Path(temp),
                                   {name: theirs for name, (_, theirs) in pipes.items()})
            finally:
                for _, theirs in pipes.values():
                    os.close(theirs)
            ended = boot.pump(sinks, deadline)
        finally:
            for ours, _ in pipes.values():
                os.close(ours)
            if child is not None:
                try:
                    child.wait(1.0 if boot.done() else 0.1)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
    match = boot.done()
    if not match:
        raise boot.error(timeout_s, ended)
    return Outcome(int(match[1]), taken["out"], taken["err"], boot.console,
                   config.known)


def complain(text: str) -> None:
    """A message of ours, told from what the command prints."""
    print(f"[host] {text}", file=sys.stderr, flush=True)
