# SPDX-License-Identifier: GPL-2.0-or-later
"""Start QEMU with a test guest, and talk to it."""

from __future__ import annotations

import functools
import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import tiers
from .console import Console, Guest
from .qmp import Json, Qmp, QmpError, QmpGone
from .util import REPO, DeadlineError, HarnessError, Process, Work, poll_until, qemu_binary

FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu")
# What a guest needs beside its pattern: the kernel and its own data, and 1/40 for page structs.
GUEST_BASE_MIB = 104
GUEST_SHARE = 40


def _script(*command: str) -> Path:
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        raise HarnessError(f"{command[0]} failed")
    return Path(done.stdout.strip())


@functools.cache
def guest_kernel() -> Path:
    """The guests' kernel, fetched at first use."""
    override = os.environ.get("KINTSUGI_GUEST_KERNEL")
    return Path(override) if override else _script(str(REPO / "scripts" / "guest-kernel.py"))


@functools.cache
def guest_initramfs() -> Path:
    """The guests' initramfs, built at first use."""
    return _script(str(REPO / "tests" / "guest" / "build.py"))


def firmware_arguments() -> list[str]:
    """QEMU's arguments for where firmware lies."""
    return [word for path in FIRMWARE if os.path.isdir(path) for word in ("-L", path)]


def memory_for_pattern(pattern_mib: int) -> int:
    """MiB of guest RAM for so many MiB of pattern, in steps of 32."""
    return -(-(pattern_mib + pattern_mib // GUEST_SHARE + GUEST_BASE_MIB) // 32) * 32


@dataclass(frozen=True)
class VmConfig:
    """A VM. Two VMs that migrate into one another differ at most in binary, ram and extra."""

    accel: str = "tcg"
    pattern_mib: int = 128
    memory_mib: int = 0            # 0: as much as the pattern needs
    smp: int = 1
    guest: tuple[tuple[str, int | str], ...] = ()   # kg.* options
    devices: tuple[str, ...] = ()  # -device arguments: part of the migration stream
    ram: str = "default"           # default, shared (memfd), hugetlb (memfd of 2 MiB pages), tiers
    kernel: bool = True            # False: firmware boots what `extra` has
    extra: tuple[str, ...] = ()    # any other QEMU arguments
    binary: Path = field(default_factory=qemu_binary)

    @property
    def ram_mib(self) -> int:
        """MiB of guest RAM."""
        return self.memory_mib or memory_for_pattern(self.pattern_mib)

    @property
    def ram_bytes(self) -> int:
        """Bytes of guest RAM."""
        return self.ram_mib * 1024 * 1024

    def with_guest(self, **options: int | str) -> VmConfig:
        """The same with other kg.* options."""
        return replace(self, guest=tuple({**dict(self.guest), **options}.items()))

    def stream_key(self) -> tuple[object, ...]:
        """Equal for VMs that can start from the same snapshot."""
        return (self.binary, self.accel, self.pattern_mib, self.ram_mib, self.smp, self.guest,
                self.devices)

    def ram_arguments(self) -> list[str]:
        """QEMU's arguments for guest RAM. The RAM block has the same name with every backend."""
        if self.ram == "default":
            return ["-m", f"{self.ram_mib}M"]
        if self.ram == "tiers":
            return ["-m", f"{self.ram_mib}M", "-machine", "memory-backend=pc.ram",
                    *tiers.ram_arguments(self.ram_mib)]
        kind = {"shared": "share=on", "hugetlb": "share=off,hugetlb=on,hugetlbsize=2M"}[self.ram]
        return ["-m", f"{self.ram_mib}M", "-machine", "memory-backend=pc.ram", "-object",
                f"memory-backend-memfd,id=pc.ram,size={self.ram_mib}M,{kind}"
                ",x-use-canonical-path-for-ramblock-id=off"]

    def command_line(self) -> list[str]:
        """The kernel's command line."""
        options = {"mib": self.pattern_mib, "workers": self.smp, **dict(self.guest)}
        return ["console=ttyS0", "quiet", "panic=-1", "random.trust_cpu=on",
                *(f"kg.{key}={value}" for key, value in options.items())]

    def kernel_arguments(self) -> list[str]:
        """QEMU's arguments for the guest's kernel."""
        if not self.kernel:
            return []
        return ["-kernel", str(guest_kernel()), "-initrd", str(guest_initramfs()),
                "-append", " ".join(self.command_line())]

    def arguments(self) -> list[str]:
        """QEMU's arguments, without monitor, console and -incoming."""
        accel = "tcg,thread=multi" if self.accel == "tcg" else self.accel
        cpu = "qemu64" if self.accel == "tcg" else "host"
        return [
            str(self.binary), "-nodefaults", "-no-user-config", "-machine", "pc", "-accel", accel,
            "-cpu", cpu, "-smp", str(self.smp), *self.ram_arguments(), "-nic", "none",
            "-vga", "none", "-display", "none", "-no-reboot", *firmware_arguments(),
            *self.kernel_arguments(),
            *(word for device in self.devices for word in ("-device", device)),
            *self.extra, *shlex.split(os.environ.get("KINTSUGI_QEMU_ARGS", "")),
        ]


class Vm:
    """A running QEMU with its QMP connections and its guest's console.

    `qmp2` is for use while `qmp` waits for a command that takes long. All are socket pairs that
    QEMU inherits, so nothing the guest prints is ever missed.
    """

    def __init__(self, name: str, config: VmConfig, work: Work, incoming: bool = False) -> None:
        self.name = name
        self.config = config
        self.work = work
        arguments = config.arguments()
        if incoming:
            arguments += ["-incoming", "defer"]
        pairs = {name: socket.socketpair() for name in ("qmp", "qmp2", "serial")}
        for label, (_, theirs) in pairs.items():
            arguments += ["-chardev", f"socket,id={label},fd={theirs.fileno()}"]
        arguments += ["-mon", "chardev=qmp,mode=control", "-mon", "chardev=qmp2,mode=control",
                      "-serial", "chardev:serial"]
        try:
            self.process = Process(name, arguments, work.logs / f"{name}.log",
                                   [theirs.fileno() for _, theirs in pairs.values()])
        except HarnessError:
            for pair in pairs.values():
                pair[0].close()
            raise
        finally:
            for _, theirs in pairs.values():
                theirs.close()
        self.console = Console(pairs["serial"][0], work.logs / f"{name}.console")
        self.guest = Guest(self.console)
        try:
            self.qmp = Qmp(pairs["qmp"][0])
            self.qmp2 = Qmp(pairs["qmp2"][0], oob=True)
        except HarnessError as error:
            self.process.kill()
            self.console.close()
            pairs["qmp"][0].close()
            pairs["qmp2"][0].close()
            raise HarnessError(f"{error}; {self.process.describe()}") from error

        work.watched.append(self.describe)

    def describe(self) -> str:
        """Everything there is to say about it, for a failed test."""
        if not self.process.alive:
            return self.process.describe()
        lines = [f"{self.name} runs with pid {self.process.pid}"]
        for command in ("query-status", "query-migrate", "query-migrate-split",
                        "query-remote-memory"):
            try:
                lines.append(f"{command}: {json.dumps(self.qmp2.execute(command, timeout_s=3))}")
            except (HarnessError, OSError) as error:
                lines.append(f"{command}: {error}")
        try:
            events = self.qmp.events + self.qmp2.poll_events()
            lines += [f"event: {json.dumps(event)}" for event in events]
        except OSError as error:
            lines.append(f"events: {error}")
        lines += [f"console: {marker.text}" for marker in self.console.markers[-3:]]
        return "\n".join(lines)

    def status(self) -> str:
        """The run state, as query-status names it."""
        return str(self.qmp.execute("query-status")["status"])

    def wait_status(self, wanted: str, seconds: float = 20.0) -> None:
        """Wait for a run state."""
        try:
            poll_until(f"{self.name} is {wanted}", lambda: self.status() == wanted, seconds)
        except DeadlineError as error:
            raise DeadlineError(f"{error}; it is {self.status()}") from None

    def hmp(self, command: str) -> str:
        """Run a command of the human monitor."""
        return str(self.qmp.execute("human-monitor-command", {"command-line": command}))

    def set_capabilities(self, **capabilities: bool) -> None:
        """Set migration capabilities; write _ for -."""
        self.qmp.execute("migrate-set-capabilities", {"capabilities": [
            {"capability": name.replace("_", "-"), "state": state}
            for name, state in capabilities.items()]})

    def set_parameters(self, **parameters: object) -> None:
        """Set migration parameters; write _ for -."""
        self.qmp.execute("migrate-set-parameters",
                         {name.replace("_", "-"): value for name, value in parameters.items()})

    def listen(self, transport: str = "unix") -> str:
        """Start to listen for a migration, and return the URI to migrate to.

        `transport` is unix or tcp.
        """
        if transport == "unix":
            uri = f"unix:{self.work.temp}/{self.name}.migrate"
            self.qmp.execute("migrate-incoming", {"uri": uri})
            return uri
        self.qmp.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
        address: Json = self.qmp.execute("query-migrate")["socket-address"][0]
        return f"tcp:{address['host']}:{address['port']}"

    def end(self) -> None:
        """End it, whatever it is doing, and reap it."""
        if self.process.alive:
            try:
                self.qmp2.execute("quit", timeout_s=3)
                self.process.wait(5)
            except (QmpError, QmpGone, DeadlineError):
                self.process.kill()
        self.close()

    def kill(self) -> None:
        """End it at once, as a host that dies would."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Close our ends, once it is dead."""
        self.qmp.close()
        self.qmp2.close()
        self.console.close()


def file_uri(vm: Vm, path: Path, direction: str) -> str:
    """The migration URI of a file; direction is < or >. QEMU before 8.2 has no file: URI."""
    if (vm.qmp.version["major"], vm.qmp.version["minor"]) >= (8, 2):
        return f"file:{path}"
    return f"exec:cat {direction} {shlex.quote(str(path))}"


class Snapshots:
    """Guests that were booted and filled once, kept as files to start from in a moment."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._files: dict[tuple[object, ...], Path] = {}

    def file(self, config: VmConfig) -> Path:
        """A file that holds such a guest just after it was filled."""
        key = config.stream_key()
        if key not in self._files:
            name = f"boot{len(self._files)}"
            path = self._work.temp / name
            vm = Vm(name, replace(config, ram="default", extra=()), self._work)
            try:
                vm.guest.wait_ready()
                vm.guest.wait_beats()
                vm.set_parameters(max_bandwidth=1 << 40)
                vm.qmp.execute("migrate", {"uri": file_uri(vm, path, ">")})
                poll_until("the boot snapshot is written",
                           lambda: vm.qmp.execute("query-migrate")["status"] == "completed", 60)
            finally:
                vm.end()
            self._files[key] = path
        return self._files[key]

    def start(self, name: str, config: VmConfig, work: Work) -> Vm:
        """Start a VM whose guest runs already."""
        path = self.file(config)
        vm = Vm(name, config, work, incoming=True)
        try:
            vm.qmp.execute("migrate-incoming", {"uri": file_uri(vm, path, "<")})
            vm.wait_status("running")
            vm.guest.wait_beats(1)
        except HarnessError as error:
            vm.end()
            raise HarnessError(f"{error}; {vm.process.describe()}") from error
        return vm
