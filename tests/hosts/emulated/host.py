# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot an emulated host, run one command in it, tell what came of it."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .initramfs import REPO, initramfs

BUILD = REPO / "build"
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")
# The last three: emulated processors may get no time for long, and nothing is wrong then.
KERNEL_ARGUMENTS = ("console=ttyS0", "panic=-1", "oops=panic", "random.trust_cpu=on",
                    "no_timer_check", "tsc=reliable", "rcupdate.rcu_cpu_stall_timeout=300")
POWER_OFF_S = 20.0
TAIL_LINES = 30
PANIC_RE = re.compile(r"Kernel panic - not syncing: (.*)")
# What a kernel says when it finds itself wrong, and goes on.
COMPLAINT_RE = re.compile(
    r"^(?:\[[ 0-9.]*\] )?(?:\w+: )?(?:WARNING: |BUG: |UBSAN: |INFO: (?:rcu|task|trying) ?)")
NOISE = "warning: TCG doesn't support requested feature"
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


def qemu() -> Path:
    """The QEMU that is the host's machine, unlike KINTSUGI_QEMU, the one under test."""
    return REPO / (os.environ.get("KINTSUGI_HOST_QEMU") or "build/qemu-build/qemu-system-x86_64")


@dataclass(frozen=True)
class HostConfig:
    """A host to boot. The command sees this machine's files; what it writes goes to memory,
    except under `writable`."""

    kernel: Path = field(default_factory=kernel)
    memory_mib: int = 3072
    cpus: int = 2
    append: tuple[str, ...] = ()          # more words for the kernel's command line
    writable: tuple[Path, ...] = ()       # directories of this machine it may write to
    extra: tuple[str, ...] = ()           # more arguments for QEMU
    gdb_port: int = 0                     # wait there for gdb before the first instruction
    qemu: Path = field(default_factory=qemu)

    def arguments(self, initrd: Path, console: Path) -> list[str]:
        """QEMU's arguments for an AMD host, without the command's input and output."""
        words = [str(self.qemu), "-nodefaults", "-no-user-config", "-machine", "q35",
                 "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt",
                 "-smp", str(self.cpus), "-m", f"{self.memory_mib}M", "-display", "none",
                 "-vga", "none", "-nic", "none", "-no-reboot"]
        for path in FIRMWARE:
            if os.path.isdir(path):
                words += ["-L", path]
        words += ["-kernel", str(self.kernel), "-initrd", str(initrd),
                  "-append", " ".join((*KERNEL_ARGUMENTS, *self.append)),
                  "-serial", f"file:{console}",
                  "-device", "virtio-serial-pci"]
        shares = [("root", Path("/"), ",readonly=on")]
        shares += [(f"share{n}", path, "") for n, path in enumerate(self.writable)]
        for tag, path, options in shares:
            words += ["-fsdev", f"local,id={tag},path={path},security_model=none,"
                                f"multidevs=remap{options}",
                      "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        if self.gdb_port:
            words += ["-gdb", f"tcp:127.0.0.1:{self.gdb_port}", "-S"]
        return [*words, *self.extra]

    def records(self, command: Sequence[str], cwd: Path, env: Mapping[str, str],
                tty: bool) -> list[tuple[str, str]]:
        """What init is to do."""
        found = [("root", "9p"), ("cwd", str(cwd))]
        found += [("share", str(path)) for path in self.writable]
        found += [("env", f"{key}={value}") for key, value in env.items()]
        found += [("tty", "1")] if tty else []
        return found + [("arg", word) for word in command]


@dataclass
class Outcome:
    """How a command ended in a host."""

    status: int
    stdout: bytes
    stderr: bytes
    console: Path

    def complaints(self) -> list[str]:
        """Lines of the kernel's log in which it finds fault with itself."""
        text = self.console.read_text(errors="replace")
        return [line for line in text.splitlines() if COMPLAINT_RE.match(line)]


def default_environment() -> dict[str, str]:
    """What every command gets."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"),
            "KINTSUGI_HOST": "amd"}


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"({error})"
    lines = [line for line in lines if NOISE not in line]
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])


class _Run:
    """One boot."""

    def __init__(self, config: HostConfig, logs: Path) -> None:
        self.config = config
        self.console = logs / "console.log"
        self.qemu_log = logs / "qemu.log"
        self.status = b""
        logs.mkdir(parents=True, exist_ok=True)
        self.console.write_bytes(b"")

    def start(self, temp: Path, records: list[tuple[str, str]],
              ports: dict[str, socket.socket], tty: bool) -> subprocess.Popen[bytes]:
        initrd = temp / "initramfs.cpio"
        initrd.write_bytes(initramfs(records))
        words = self.config.arguments(initrd, self.console)
        for name, theirs in ports.items():
            words += ["-chardev", f"socket,id={name},fd={theirs.fileno()}",
                      "-device", f"virtserialport,chardev={name},name={name}"]
        if tty:
            words += ["-chardev", "stdio,id=tty,signal=off",
                      "-device", "virtconsole,chardev=tty,name=tty"]
        wrapper = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self.qemu_log.open("wb") as log:
            log.write((" ".join(words) + "\n").encode())
            log.flush()
            try:
                return subprocess.Popen(
                    [*wrapper, *words], stdin=None if tty else subprocess.DEVNULL,
                    stdout=None if tty else log, stderr=log,
                    pass_fds=[theirs.fileno() for theirs in ports.values()])
            except OSError as error:
                raise HostError(f"cannot start {words[0]}: {error}") from error

    def pump(self, sinks: dict[socket.socket, Callable[[bytes], object]],
             deadline: float | None) -> bool:
        """Hands on what comes until every socket is closed; False if the deadline came first."""
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
                    try:
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    except ConnectionError:
                        data = b""
                    if data:
                        key.data(data)
                    else:
                        selector.unregister(key.fileobj)
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
                         f"the end of {self.qemu_log}:\n{_tail(self.qemu_log)}")


def run(command: Sequence[str], config: HostConfig = HostConfig(), *, logs: Path,
        timeout_s: float | None = 300.0, cwd: Path | None = None,
        env: Mapping[str, str] | None = None, tty: bool = False,
        stdout: BinaryIO | None = None, stderr: BinaryIO | None = None) -> Outcome:
    """Boot a host and run `command` in it.

    `logs` gets console.log and qemu.log. What the command prints is returned, or copied to
    `stdout` and `stderr` as it comes. With `tty` it talks to our terminal instead. Raises
    HostTimeout, HostPanic or another HostError if there is no exit status of the command.
    """
    for path, how in ((config.kernel, "make kernel"), (config.qemu, "make qemu")):
        if not path.exists():
            raise HostError(f"{path} does not exist; build it (`{how}`)")
    for path in config.writable:
        if not path.is_dir():
            raise HostError(f"{path} is no directory, so nothing can be written there")
    boot = _Run(config, logs)
    taken = {"out": b"", "err": b""}
    names = ("status",) if tty else ("status", "out", "err")
    pairs = {name: socket.socketpair() for name in names}

    def sink(name: str, stream: BinaryIO | None) -> Callable[[bytes], object]:
        def keep(data: bytes) -> None:
            taken[name] += data

        def copy(data: bytes) -> None:
            stream.write(data)
            stream.flush()
        return keep if stream is None else copy

    sinks = {pairs["status"][0]: boot.add_status}
    if not tty:
        sinks[pairs["out"][0]] = sink("out", stdout)
        sinks[pairs["err"][0]] = sink("err", stderr)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    variables = {**default_environment(), **(env or {})}
    with tempfile.TemporaryDirectory(prefix="kg-host-") as temp:
        child = None
        try:
            child = boot.start(Path(temp), config.records(
                command, cwd or Path.cwd(), variables, tty),
                {name: theirs for name, (_, theirs) in pairs.items()}, tty)
            for _, theirs in pairs.values():
                theirs.close()
            ended = boot.pump(sinks, deadline)
        finally:
            for pair in pairs.values():
                pair[0].close()
                pair[1].close()
            if child is not None:
                try:
                    child.wait(1.0 if boot.done() else 0.1)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
    match = boot.done()
    if not match:
        raise boot.error(timeout_s, ended)
    return Outcome(int(match[1]), taken["out"], taken["err"], boot.console)


def complain(text: str) -> None:
    """A message of ours, told from what the command prints."""
    print(f"[host] {text}", file=sys.stderr, flush=True)
