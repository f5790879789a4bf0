# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages in a clean root: beside Debian's QEMU, without root rights, and away again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Lintian, MakeRoot
from roots import USER, Root

from kintsugi.migrate import complete
from kintsugi.split import SplitSetup
from kintsugi.util import Work
from kintsugi.vm import VmConfig, guest_initramfs, guest_kernel

TOOLS = ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")


def test_lintian(packages: dict[str, Path], lintian: Lintian) -> None:
    status, said = lintian(list(packages.values()))
    assert status == 0, said


def test_installed_beside_debians_and_purged(packages: dict[str, Path],
                                             make_root: MakeRoot) -> None:
    root = make_root("clean")
    root.install(["qemu-system-x86", "qemu-utils"])
    debians = root.run("qemu-system-x86_64", "--version")
    # What ours need is there already when the list is made.
    root.install(["udev"])
    depends = subprocess.run(["dpkg-deb", "-f", str(packages["kintsugi-qemu"]), "Depends"],
                             text=True, check=True, stdout=subprocess.PIPE).stdout
    depends += "," + subprocess.run(
        ["dpkg-deb", "-f", str(packages["kintsugi-memserver"]), "Depends"],
        text=True, check=True, stdout=subprocess.PIPE).stdout
    root.install(sorted({re.split(r"[ (|]", word.strip())[0] for word in depends.split(",")}))
    before = root.files()

    root.install(list(packages.values()))
    ours = root.run("qemu-system-x86_64-kintsugi", "--version")
    assert "version 10.0" in ours and ours != debians
    assert root.run("qemu-system-x86_64", "--version") == debians
    assert "access-tracker" in root.run("qemu-system-x86_64-kintsugi", "-object", "help")
    for tool in TOOLS:
        assert "10.0" in root.run(f"{tool}-kintsugi", "--version")
    assert "--listen" in root.run("memserver", "--help")
    # No package of ours has a file of another's.
    assert "dpkg-divert" not in root.run("dpkg-query", "-L", *packages)
    added = root.files() - before
    assert {path for path in added if "/bin/" in path or "/sbin/" in path} == {
        "/usr/sbin/memserver", "/usr/bin/qemu-system-x86_64-kintsugi",
        *(f"/usr/bin/{tool}-kintsugi" for tool in TOOLS)}
    assert any(path.endswith("/60-kintsugi-userfaultfd.rules") for path in added)
    assert any(path.endswith("/kintsugi-memserver.service") for path in added)

    root.run("apt-get", "purge", "-qy", *packages)
    assert root.files() - before == set()


def test_an_upgrade_leaves_the_server_running(packages: dict[str, Path], make_root: MakeRoot,
                                              tmp_path: Path) -> None:
    """Whatever maintainer scripts would do to the service is noted instead of done."""
    root = make_root("upgraded")
    root.install(["systemd"])
    notes = root.path / "notes"
    for program in ("systemctl", "deb-systemd-invoke"):
        found = root.run("sh", "-c", f"command -v {program}").strip()
        stub = root.path / found.lstrip("/")
        stub.unlink()
        stub.write_text(f'#!/bin/sh\necho {program} "$@" >> /notes\n', encoding="utf-8")
        stub.chmod(0o755)
    (root.path / "run/systemd/system").mkdir(parents=True, exist_ok=True)
    package = packages["kintsugi-memserver"]
    root.install([package])

    newer = tmp_path / "newer"
    subprocess.run(["dpkg-deb", "-R", str(package), str(newer)], check=True)
    control = newer / "DEBIAN/control"
    control.write_text(re.sub(r"^(Version: .*)$", r"\1+1", control.read_text(), flags=re.M))
    upgrade = tmp_path / "kintsugi-memserver_newer_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(newer), str(upgrade)], check=True,
                   stdout=subprocess.DEVNULL)
    notes.write_text("", encoding="utf-8")
    root.install([upgrade])
    said = notes.read_text()
    assert "daemon-reload" in said, "the new unit is not known"
    assert not re.search(r"\b(stop|restart|try-restart|kill)\b.*memserver", said), said
    notes.write_text("", encoding="utf-8")
    root.run("apt-get", "purge", "-qy", "kintsugi-memserver")
    assert re.search(r"\bstop\b.*memserver", notes.read_text()), "removed, and left running"


def prepare(root: Root, work: Work, packages: dict[str, Path]) -> None:
    """A host: the packages, a user without rights, and what udev would have made of /dev."""
    root.install([*packages.values(), "kmod"])
    root.run("useradd", "--system", USER)
    root.run("sh", "-c", "getent group kvm || groupadd --system kvm")
    dev = root.path / "dev"
    rules = next(root.path.glob("**/udev/rules.d/60-kintsugi-userfaultfd.rules")).read_text()
    group = re.search(r'^KERNEL=="userfaultfd".*GROUP="(\w+)".*MODE="(\d+)"', rules, re.M)
    assert group, rules
    machine = os.stat("/dev/userfaultfd")
    os.mknod(dev / "userfaultfd", machine.st_mode, machine.st_rdev)
    root.run("chgrp", group[1], "/dev/userfaultfd")
    root.run("chmod", group[2], "/dev/userfaultfd")
    for path in (guest_kernel(), guest_initramfs()):
        at = root.path / str(path).lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, at)
        for part in [at, *at.parents]:
            if part == root.path:
                break
            part.chmod(part.stat().st_mode | 0o555)
    root.bind(Path("/proc"))
    root.bind(work.temp)


@pytest.mark.skipif(not os.path.exists("/dev/userfaultfd"),
                    reason="this kernel has no /dev/userfaultfd")
def test_a_vm_is_split_between_two_roots(packages: dict[str, Path], make_root: MakeRoot,
                                         tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither QEMU nor memserver has root rights on either side."""
    work = Work(tmp_path / "logs")
    work.temp.chmod(0o777)
    here, there = make_root("here"), make_root("there")
    setup = None
    try:
        for root in (here, there):
            prepare(root, work, packages)
        qemu = {root: root.wrapper("qemu-system-x86_64-kintsugi", tmp_path / f"qemu{index}")
                for index, root in enumerate((here, there))}
        monkeypatch.setenv("KINTSUGI_MEMSERVER",
                           str(there.wrapper("/usr/sbin/memserver", tmp_path / "memserver")))
        config = VmConfig(binary=qemu[here])
        setup = SplitSetup(work, None, config)
        setup.source.guest.wait_ready()
        destination = setup.start_destination(binary=qemu[there])
        for vm in (setup.source, destination):
            status = Path(f"/proc/{vm.process.pid}/status").read_text()
            assert re.search(r"^Uid:\t(?!0\t)", status, re.M)
            assert "CapEff:\t0000000000000000" in status
        setup.start_split(destination.listen("tcp"))
        complete(setup.source, destination, 120)
        destination.guest.verify()
    finally:
        if setup:
            setup.close()
        work.close()
