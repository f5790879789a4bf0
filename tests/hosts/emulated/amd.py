# SPDX-License-Identifier: GPL-2.0-or-later
"""An AMD host (SVM, NPT with Accessed and Dirty bits): QEMU under TCG.

The command sees this machine's files over 9p; what it writes goes to memory, except under
`writable`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from .host import HostConfig, Task
from .initramfs import REPO, initramfs

FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")


def qemu() -> Path:
    """The QEMU that is the host's machine, unlike KINTSUGI_QEMU, the one under test."""
    return REPO / (os.environ.get("KINTSUGI_HOST_QEMU") or "build/qemu-build/qemu-system-x86_64")


@dataclass(frozen=True)
class AmdHost(HostConfig):
    """`extra` is more arguments for QEMU."""

    name: ClassVar[str] = "amd"
    emulator: ClassVar[str] = "qemu"
    noise: ClassVar[str] = "warning: TCG doesn't support requested feature"

    memory_mib: int = 3072
    writable: tuple[Path, ...] = ()       # directories of this machine it may write to
    gdb: int = 0                          # port to wait for gdb at, before the first instruction
    count_instructions: bool = False      # time is their number, see tests/bench/kernel/bench.h
    qemu: Path = field(default_factory=qemu)

    def missing(self) -> str:
        if not self.qemu.exists():
            return f"{self.qemu} does not exist (`make qemu`)"
        for path in self.writable:
            if not path.is_dir():
                return f"{path} is no directory, so nothing can be written there"
        return super().missing()

    def arguments(self, task: Task, temp: Path, console: Path,
                  ports: Mapping[str, int]) -> list[str]:
        records = [("root", "9p"), *(("share", str(path)) for path in self.writable)]
        initrd = temp / "initramfs.cpio"
        initrd.write_bytes(initramfs([*records, *task.records()]))
        accel = ["-accel", "tcg,thread=multi"]
        if self.count_instructions:
            accel = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
        words = [str(self.qemu), "-nodefaults", "-no-user-config", "-machine", "q35", *accel,
                 "-cpu", "EPYC,+svm,+npt",
                 "-smp", str(self.cpus), "-m", f"{self.memory_mib}M", "-display", "none",
                 "-vga", "none", "-nic", "none", "-no-reboot"]
        for path in FIRMWARE:
            if os.path.isdir(path):
                words += ["-L", path]
        words += ["-kernel", str(self.kernel), "-initrd", str(initrd),
                  "-append", self.kernel_command_line(), "-serial", f"file:{console}",
                  "-device", "virtio-serial-pci"]
        shares = [("root", Path("/"), ",readonly=on")]
        shares += [(f"share{n}", path, "") for n, path in enumerate(self.writable)]
        for tag, path, options in shares:
            words += ["-fsdev", f"local,id={tag},path={path},security_model=none,"
                                f"multidevs=remap{options}",
                      "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        if self.gdb:
            words += ["-gdb", f"tcp:127.0.0.1:{self.gdb}", "-S"]
        words += self.extra
        for name, number in ports.items():
            words += ["-chardev", f"file,id={name},path=/dev/fd/{number}",
                      "-device", f"virtserialport,chardev={name},name={name}"]
        if task.tty:
            words += ["-chardev", "stdio,id=tty,signal=off",
                      "-device", "virtconsole,chardev=tty,name=tty"]
        return words
