# SPDX-License-Identifier: GPL-2.0-or-later
"""An Intel host (VMX, EPT with Accessed and Dirty bits): Bochs.

QEMU does not emulate VMX. Bochs does, but has nothing to share files by, and is slower. So the
root is an initramfs: busybox with its applets, the command and `bring`, each at its own path and
with the libraries it needs.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .host import HostConfig, HostError, Task
from .initramfs import Files, initramfs

BUSYBOX = Path("/bin/busybox")
BIOS = Path("/usr/share/bochs/BIOS-bochs-latest")
VGA_BIOS = Path("/usr/share/vgabios/vgabios.bin")
GRUB_MODULES = Path("/usr/lib/grub/i386-pc")

# The processors read MSRs that Bochs lacks at every tick, so errors are not logged.
BOCHSRC = """\
cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault=0
memory: guest={memory_mib}, host={memory_mib}
romimage: file={bios}
vgaromimage: file={vga_bios}
ata0-master: type=cdrom, path={image}, status=inserted
boot: cdrom
clock: sync=none, time0=utc
display_library: term
panic: action=fatal
error: action=ignore
info: action=report
debug: action=ignore
com1: enabled=1, mode=file, dev={console}
"""
LINES = {"status": "com2", "out": "com3", "err": "com4", "tty": "com4"}
GRUB_CONFIG = """\
linux /bzImage {words}
initrd /initrd
boot
"""


def _run_tool(*words: str) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          text=True)
    if done.returncode:
        raise HostError(f"{words[0]} failed: {done.stdout}")


def with_libraries(path: Path) -> Files:
    """A file, and what it needs to be run."""
    found = {path}
    if path.read_bytes()[:4] == b"\x7fELF":
        listed = subprocess.run(["ldd", str(path)], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, check=False, text=True)
        found |= {Path(name) for name in re.findall(r"(/\S+) \(0x", listed.stdout)}
    return {str(name).lstrip("/"): (name.stat().st_mode & 0o7777, name.read_bytes())
            for name in found}


def root_files(command: str, cwd: Path, bring: tuple[Path, ...]) -> Files:
    """All of the root but init."""
    files: Files = {"tmp": (stat.S_IFDIR | 0o1777, b""),
                    str(cwd).lstrip("/") or "root": (stat.S_IFDIR | 0o755, b""),
                    **with_libraries(BUSYBOX)}
    applets = subprocess.run([str(BUSYBOX), "--list-full"], stdout=subprocess.PIPE, check=True,
                             text=True).stdout.split()
    files.update({name: (stat.S_IFLNK | 0o777, os.fsencode(BUSYBOX))
                  for name in applets if name not in files})
    wanted = list(bring)
    if "/" in command:
        wanted.append(Path(os.path.normpath(cwd / command)))
    elif command not in {Path(name).name for name in applets} and (where := shutil.which(command)):
        wanted.append(Path(where))
    for path in wanted:
        if path.is_file():
            files.update(with_libraries(path))
    return files


@dataclass(frozen=True)
class IntelHost(HostConfig):
    """`extra` is more lines for bochsrc."""

    name: ClassVar[str] = "intel"
    emulator: ClassVar[str] = "bochs"
    known: ClassVar[str] = "topology_common.c"  # at boot, about the processors

    memory_mib: int = 2048
    model: str = "corei7_haswell_4770"    # corei7_skylake_x has page modification logging as well
    bring: tuple[Path, ...] = ()          # more files for the root
    # What a second is for the machine. With fewer a sleep is over sooner, but also a time limit.
    instructions_per_s: int = 20_000_000

    def missing(self) -> str:
        for path in (BUSYBOX, BIOS, VGA_BIOS, GRUB_MODULES):
            if not path.exists():
                return f"{path} does not exist (`make deps`)"
        for program in ("bochs", "grub-mkimage", "xorriso", "ldd"):
            if not shutil.which(program):
                return f"there is no {program} (`make deps`)"
        for path in self.bring:
            if not path.is_file():
                return f"{path} is no file, so it cannot be brought"
        return super().missing()

    def kernel_command_line(self) -> str:
        # The time stamp counter counts instructions, whatever CPUID of a model says. A triple fault
        # is the one way to reboot that this machine can be told to end at. Idle processors halt: at
        # MONITOR, Bochs flushes the processors' TLBs by the physical address where the linear one
        # is meant (cpu/mwait.cc), so it may not see a store of another one there, and MWAIT sleeps
        # on until an interrupt. Of the compact form of XSAVE, CPUID tells the size of the other.
        return (f"{super().kernel_command_line()} tsc_early_khz={self.instructions_per_s // 1000} "
                "reboot=triple idle=nomwait clearcpuid=xsavec,xsaves")

    def arguments(self, task: Task, temp: Path, console: Path,
                  ports: Mapping[str, int]) -> list[str]:
        lines = BOCHSRC.format(
            model=self.model, cpus=self.cpus, ips=self.instructions_per_s, bios=BIOS,
            memory_mib=self.memory_mib, vga_bios=VGA_BIOS, console=console,
            image=self._image(task, temp))
        for name, number in ports.items():
            lines += f"{LINES[name]}: enabled=1, mode=file, dev=/dev/fd/{number}\n"
        if task.tty:
            lines += f"{LINES['tty']}: enabled=1, mode=term, dev={os.ttyname(0)}\n"
        lines += "".join(f"{line}\n" for line in self.extra)
        (temp / "bochsrc").write_text(lines, encoding="utf-8")
        (temp / "debugger").write_text("continue\n", encoding="utf-8")
        return ["env", "TERM=vt100", "bochs", "-q", "-f", str(temp / "bochsrc"),
                "-rc", str(temp / "debugger")]

    def _image(self, task: Task, temp: Path) -> Path:
        """A CD that boots the kernel."""
        top = temp / "cd"
        top.mkdir()
        (top / "bzImage").symlink_to(self.kernel)
        files = root_files(task.command[0], task.cwd, self.bring)
        (top / "initrd").write_bytes(initramfs([("root", "here"), *task.records()], files))
        words = " ".join(f"'{word}'" for word in self.kernel_command_line().split())
        (temp / "grub.cfg").write_text(GRUB_CONFIG.format(words=words), encoding="utf-8")
        _run_tool("grub-mkimage", "-O", "i386-pc-eltorito", "-d", str(GRUB_MODULES),
                  "-p", "/", "-c", str(temp / "grub.cfg"), "-o", str(top / "grub"),
                  "iso9660", "biosdisk", "linux")
        image = temp / "cd.iso"
        _run_tool("xorriso", "-as", "mkisofs", "-quiet", "-R", "-f", "-b", "grub",
                  "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table",
                  "-o", str(image), str(top))
        return image
