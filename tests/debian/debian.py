# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole Debian guest: its VM, what is asked of it, and what it must answer.

The VM has two RAM blocks of 5 GiB together, so memory on both sides of the hole below 4 GiB; its
vCPU is in the node of the second block, which Linux uses first. It has a qcow2 root disk, a data
disk and a network, all virtio.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kintsugi.migrate import Figures, complete, query
from kintsugi.split import SplitSetup, query_remote
from kintsugi.util import (BUILD, MIB, PAGE_BYTES, REPO, Deadline, DeadlineError, HarnessError,
                           Work, poll_until, qemu_binary)
from kintsugi.vm import FIRMWARE, Snapshots, Vm, VmConfig

GUEST_SCRIPTS = Path(__file__).resolve().parent / "guest"
sys.path.insert(0, str(GUEST_SCRIPTS))
# pylint: disable=wrong-import-position
import dbload  # noqa: E402

BOOT_S = 240.0
RUN_S = 120.0
SPLIT_S = 180.0
BLOCKS_MIB = (1024, 4096)
DATA_MIB = 256
MAIN_PERCENT = 40           # of what the booted guest has in use; the rest of 5 GiB is zeroes
FILES = 32
FILE_BYTES = MIB
URL = "http://10.0.2.2:{port}"
OPT = "/usr/bin/python3 /opt/kintsugi"
FIO_KEPT = "0 16M"          # written once, verified at the end
FIO_LOAD = "64M 4M"         # written and verified again and again


class GuestFailed(HarnessError):
    """The guest found something wrong, or a command in it failed."""


@functools.cache
def image() -> Path:
    """The directory of the guest's image, which is made at first use."""
    done = subprocess.run([sys.executable, "-B", str(REPO / "scripts" / "debian_image.py")],
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise HarnessError("scripts/debian_image.py failed")
    return Path(done.stdout.strip())


def qemu_img(*words: str | Path) -> str:
    """Run the qemu-img beside the QEMU under test."""
    program = qemu_binary().parent / "qemu-img"
    done = subprocess.run([str(program), *(str(word) for word in words)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise HarnessError(f"qemu-img {words[0]} failed: {done.stdout}")
    return done.stdout


def takes_direct_io(directory: Path) -> bool:
    """Whether a file there can be opened as cache=none does."""
    path = directory / "direct"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


class Disks:
    """A root disk over a base image and an empty data disk, where direct I/O works."""

    def __init__(self, work: Work, base: Path, base_format: str, data_format: str = "raw") -> None:
        self._own: Path | None = None
        directory = work.temp
        if not takes_direct_io(directory):
            self._own = directory = Path(tempfile.mkdtemp(prefix="disks-", dir=BUILD))
            if not takes_direct_io(directory):
                raise HarnessError(f"neither {work.temp} nor {BUILD} takes direct I/O")
        self.root = directory / "root.qcow2"
        self.data = directory / "data"
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", base_format, self.root)
        qemu_img("create", "-q", "-f", data_format, self.data, f"{DATA_MIB}M")

    def close(self) -> None:
        """Remove them."""
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)


@dataclass(frozen=True)
class DebianConfig(VmConfig):
    """The VM. `agent` is the path of the socket of the guest's agent, one for each VM."""

    memory_mib: int = sum(BLOCKS_MIB)
    root: Path = Path()
    data: Path = Path()
    data_format: str = "raw"
    aio: str = "threads"
    iothread: bool = False
    agent: Path = Path()

    def arguments(self) -> list[str]:
        """QEMU's arguments, without monitor, console and -incoming."""
        firmware = [word for path in FIRMWARE if os.path.isdir(path) for word in ("-L", path)]
        words = [str(self.binary), "-nodefaults", "-no-user-config", "-machine", "q35",
                 "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", str(self.smp),
                 "-vga", "none", "-display", "none", *firmware,
                 "-m", f"{self.memory_mib}M"]
        for node, mib in enumerate(BLOCKS_MIB):
            words += ["-object", f"memory-backend-ram,id=ram{node},size={mib}M"]
        words += ["-numa", "node,nodeid=0,memdev=ram0",
                  "-numa", f"node,nodeid=1,memdev=ram1,cpus=0-{self.smp - 1}"]
        words += ["-kernel", str(image() / "vmlinuz"), "-initrd", str(image() / "initrd"),
                  "-append", "root=LABEL=kintsugi-root rw console=ttyS0 quiet panic=-1 "
                  "random.trust_cpu=on"]
        in_thread = ",iothread=io0" if self.iothread else ""
        if self.iothread:
            words += ["-object", "iothread,id=io0"]
        for name, path, kind in (("root", self.root, "qcow2"), ("data", self.data,
                                                                self.data_format)):
            words += ["-drive", f"if=none,id={name},file={path},format={kind},cache=none,"
                      f"aio={self.aio}",
                      "-device", f"virtio-blk-pci,drive={name},serial={name}{in_thread}"]
        words += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile=",
                  "-chardev", f"socket,id=agent,path={self.agent},server=on,wait=off",
                  "-device", "virtio-serial-pci", "-device",
                  "virtserialport,chardev=agent,name=kintsugi.agent"]
        return [*words, *self.extra, *shlex.split(os.environ.get("KINTSUGI_QEMU_ARGS", ""))]


# ---- What the host serves ------------------------------------------------------------------------

@functools.cache
def served(index: int) -> bytes:
    """The content of a file."""
    return hashlib.shake_128(b"file %d" % index).digest(FILE_BYTES)


def files_digest() -> str:
    """The SHA-256 of all files, one after the other."""
    digest = hashlib.sha256()
    for index in range(FILES):
        digest.update(served(index))
    return digest.hexdigest()


class FileServer:
    """Serves the files by HTTP to the guest's user networking."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            """GET /INDEX."""

            def do_GET(self) -> None:  # pylint: disable=invalid-name
                """Send a file."""
                data = served(int(self.path.rsplit("/", 1)[1]))
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:
                    pass        # a VM that moved away

            def log_message(self, format: str, *_: object) -> None:  # pylint: disable=W0622
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = URL.format(port=self._server.server_address[1])

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


# ---- The guest -----------------------------------------------------------------------------------

class Debian:
    """The guest of a VM, through its agent."""

    def __init__(self, vm: Vm) -> None:
        assert isinstance(vm.config, DebianConfig)
        self.vm = vm
        self._id = 0
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(vm.config.agent))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _line(self, deadline: Deadline) -> bytes:
        while b"\n" not in self._rest:
            if self.vm.console.fatal:
                raise GuestFailed(f"{self.vm.name}: {self.vm.console.fatal}")
            if not self.vm.process.alive:
                raise GuestFailed(self.vm.process.describe())
            if deadline.over:
                raise DeadlineError(f"the agent of {self.vm.name} did not answer in "
                                    f"{deadline.seconds:g} s")
            self._socket.settimeout(min(max(deadline.left_s, 0.001), 1.0))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise GuestFailed(f"{self.vm.name} closed the agent's port")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def request(self, patience_s: float, **members: object) -> dict[str, object]:
        """Ask, and wait for the answer."""
        self._id += 1
        deadline = Deadline(patience_s)
        self._socket.settimeout(patience_s)
        self._socket.sendall(json.dumps({"id": self._id, **members}).encode() + b"\n")
        while True:
            answer: dict[str, object] = json.loads(self._line(deadline))
            # An answer to a request that was given up earlier is of no interest.
            if answer["id"] == self._id:
                if "error" in answer:
                    raise GuestFailed(f"{self.vm.name}: {members}: {answer['error']}")
                return answer

    def run(self, command: str, seconds: float = RUN_S) -> str:
        """A command that must succeed; its output."""
        answer = self.request(seconds + 10, op="run", command=command, seconds=seconds)
        if answer["status"] != 0:
            raise GuestFailed(f"{self.vm.name}: {command}: status {answer['status']}: "
                              f"{answer['out']}")
        return str(answer["out"]).strip()

    def wait_up(self, seconds: float = BOOT_S) -> None:
        """Wait until it has booted: its agent and its database answer."""
        self.request(seconds, op="run", command="true", seconds=seconds)
        self.run("until redis-cli ping | grep -q PONG; do sleep 0.1; done", seconds)

    def start(self, name: str, command: str) -> None:
        """Start something in the background, to be ended by finish()."""
        self.request(30, op="start", name=name, command=command)

    def check_runs(self, *names: str) -> None:
        """These run still."""
        for name in names:
            answer = self.request(30, op="wait", name=name, seconds=0)
            if answer["status"] is not None:
                raise GuestFailed(f"{name} ended with {answer['status']}: {answer['out']}")

    def finish(self, name: str, seconds: float = RUN_S) -> dict[str, float]:
        """Ask it to end, and return the JSON object it prints; it must have found nothing wrong."""
        self.request(30, op="stop", name=name)
        answer = self.request(seconds + 10, op="wait", name=name, seconds=seconds)
        if answer["status"] != 0:
            raise GuestFailed(f"{name}: status {answer['status']}: {answer['out']}")
        result: dict[str, float] = json.loads(str(answer["out"]).strip().splitlines()[-1])
        return result


class Load:
    """The loads of a guest that may move: a database, a disk and the network, all verified.

    What the database must hold is known at each end of a load: `database` lists all loads since it
    was filled.
    """

    NAMES = {"dbload": "operations", "fioload": "rounds", "netload": "rounds"}

    def __init__(self, server: FileServer) -> None:
        self._server = server
        self.database: list[tuple[int, int]] = []
        self.results: dict[str, dict[str, float]] = {}

    def start(self, debian: Debian) -> None:
        """Start all."""
        seed = 1 + len(self.database)
        debian.start("dbload", f"{OPT}/dbload.py load {seed} '{json.dumps(self.database)}'")
        debian.start("fioload", f"{OPT}/fioload.py load {FIO_LOAD}")
        debian.start("netload", f"{OPT}/netload.py load {self._server.url} {FILES} "
                     f"{files_digest()}")

    def positions(self, debian: Debian) -> dict[str, int]:
        """How far each is."""
        return {name: int(debian.run(f"cat /run/kintsugi/{name}.{what} 2>/dev/null || echo 0")
                          or "0") for name, what in self.NAMES.items()}

    def wait_progress(self, debian: Debian, seconds: float = RUN_S) -> None:
        """Wait until each has got on from where it is."""
        before = self.positions(debian)

        def went_on() -> bool:
            debian.check_runs(*self.NAMES)
            now = self.positions(debian)
            return all(now[name] > before[name] for name in self.NAMES)
        poll_until("all loads go on", went_on, seconds, 0.2)

    def finish(self, debian: Debian) -> None:
        """End all; none has found anything wrong, and each has done something."""
        for name in self.NAMES:
            self.results[name] = debian.finish(name)
        done = self.results["dbload"]
        self.database.append((int(done["seed"]), int(done["operations"])))
        assert done["operations"] > 0
        assert self.results["fioload"]["rounds"] > 0


def check_content(debian: Debian, load: Load, fio: bool = True) -> None:
    """All that the guest keeps is right: the database, the files in memory and on the disk, and
    what fio wrote at the beginning."""
    wanted = dbload.expected_digest(load.database)
    got = debian.run(f"{OPT}/dbload.py digest")
    assert got == wanted, f"the database holds {got}, not {wanted}, after {load.database}"
    check_files(debian)
    debian.run("sync; echo 3 >/proc/sys/vm/drop_caches")
    check_files(debian)
    if fio:
        debian.run(f"{OPT}/fioload.py verify {FIO_KEPT}")


def check_memory_layout(debian: Debian) -> None:
    """The guest uses both RAM blocks, and memory above 4 GiB."""
    for node in range(len(BLOCKS_MIB)):
        used_kib = int(debian.run(f"grep MemUsed /sys/devices/system/node/node{node}/meminfo")
                       .split()[3])
        assert used_kib > 16 << 10, f"node {node} has {used_kib} KiB in use"
    # The zone Normal is all that is above 4 GiB.
    zone: dict[str, int] = {}
    name = ""
    for words in map(str.split, debian.run("cat /proc/zoneinfo").splitlines()):
        if words[:1] == ["Node"]:
            name = words[3]
        elif name == "Normal" and words[0] in ("pages", "managed"):
            zone[words[0]] = zone.get(words[0], 0) + int(words[-1])
    used_bytes_above = (zone["managed"] - zone["pages"]) * PAGE_BYTES
    assert used_bytes_above > 64 * MIB, f"{used_bytes_above} bytes above 4 GiB are in use"


def check_files(debian: Debian) -> None:
    """The fetched files, read through the page cache."""
    assert debian.run("cat /srv/files/* | sha256sum").split()[0] == files_digest()


# ---- Boot once, split often ----------------------------------------------------------------------

class Booted(Snapshots):
    """A guest that was booted once, its database filled and its files fetched; kept as a file."""

    def __init__(self, work: Work, server: FileServer) -> None:
        super().__init__(work)
        self.server = server
        self.used_bytes = 0
        self._disks = Disks(work, image() / "root.ext4", "raw")
        self.root = self._disks.root
        self._stream = work.temp / "booted"
        config = DebianConfig(root=self.root, data=self._disks.data, agent=work.temp / "boot.agent")
        vm = Vm("boot", config, work)
        try:
            debian = Debian(vm)
            debian.wait_up()
            debian.run(f"{OPT}/dbload.py fill")
            debian.run(f"{OPT}/netload.py fetch {server.url} /srv/files {FILES}")
            debian.run("sync")
            self.used_bytes = used_bytes(debian)
            vm.set_parameters(max_bandwidth=1 << 40)
            vm.qmp.execute("migrate", {"uri": f"file:{self._stream}"})
            poll_until("the booted guest is written",
                       lambda: query(vm)["status"] == "completed", 120)
            debian.close()
        finally:
            vm.end()

    def close(self) -> None:
        """Remove its disks."""
        self._disks.close()

    def start(self, name: str, config: VmConfig, work: Work) -> Vm:
        """Start a VM from it, over a root disk of its own."""
        vm = Vm(name, config, work, incoming=True)
        try:
            vm.qmp.execute("migrate-incoming", {"uri": f"file:{self._stream}"})
            vm.wait_status("running", 60)
        except HarnessError as error:
            vm.end()
            raise HarnessError(f"{error}; {vm.process.describe()}") from error
        return vm


def used_bytes(debian: Debian) -> int:
    """What the guest has in use, page cache included."""
    text = debian.run("grep -E 'MemTotal|MemFree' /proc/meminfo")
    total, free = (int(line.split()[1]) * 1024 for line in text.splitlines())
    return total - free


class DebianSetup:
    """Memory servers, a running source, and one guest that may be here or there."""

    def __init__(self, work: Work, booted: Booted, *, main_percent: int = MAIN_PERCENT,
                 arena: bool = False, data_format: str = "raw", **changes: object) -> None:
        self.work = work
        self.disks = Disks(work, booted.root, "qcow2", data_format)
        config = replace(DebianConfig(root=self.disks.root, data=self.disks.data,
                                      data_format=data_format, agent=work.temp / "source.agent"),
                         **changes)  # type: ignore[arg-type]
        tracked = replace(config, extra=(*config.extra, "-object",
                                         "access-tracker,id=at0,period=500"))
        self._plain = config
        self.setup = SplitSetup(work, booted, tracked, main_percent=2, arena=arena)
        self.setup.main_bytes = booted.used_bytes * main_percent // 100 // MIB * MIB
        self.debian = Debian(self.setup.source)
        self.load = Load(booted.server)

    @property
    def vm(self) -> Vm:
        """Where the guest runs."""
        return self.debian.vm

    def close(self) -> None:
        """End all."""
        self.debian.close()
        self.setup.close()
        self.disks.close()

    def _destination(self) -> Vm:
        return self.setup.start_destination(agent=self.work.temp / "destination.agent",
                                            extra=self._plain.extra)

    def _moved(self, destination: Vm, seconds: float) -> Figures:
        figures = complete(self.setup.source, destination, seconds)
        self.debian.close()
        self.debian = Debian(destination)
        return figures

    def split(self, seconds: float = SPLIT_S, **arguments: object) -> Figures:
        """Split the VM; from then on its guest is the destination's."""
        destination = self._destination()
        self.setup.start_split(destination.listen(), **arguments)
        figures = self._moved(destination, seconds)
        self.setup.source.end()
        return figures

    def migrate(self, seconds: float = SPLIT_S) -> Figures:
        """An ordinary migration instead."""
        destination = self._destination()
        self.setup.source.qmp.execute("migrate", {"uri": destination.listen()})
        figures = self._moved(destination, seconds)
        self.setup.source.end()
        return figures

    def check_paged(self) -> None:
        """The guest's memory really is in several places, and moves between them."""
        info = query_remote(self.vm)
        assert info["remote"] > 1000 and info["page-ins"] > 0, info
        assert not info["stopped"]
        assert info["resident"] * PAGE_BYTES <= self.setup.main_bytes, info
