# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM of fast and slow memory, whose pages change places while the guest runs.

Here the two are files; in emulated hosts (tests/hosts) also physical memory and NUMA nodes.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kintsugi import tiers as tiers_of
from kintsugi.migrate import complete, prepare, start_stock
from kintsugi.qmp import Json, QmpError
from kintsugi.split import SplitSetup
from kintsugi.util import PAGE_BYTES, REPO, HarnessError, Work, poll_until, qemu_binary
from kintsugi.vm import Vm, VmConfig, firmware_arguments

pytestmark = pytest.mark.split
StartVm = Callable[..., Vm]
MIB = 1 << 20
CONTAINER = "memory-backend-container,id=c,size=64M"
PIECE = "memory-backend-devmem,id=p,parent=c"
SECOND = {"qom-type": "memory-tiering", "memdev": "pc.ram", "fast": ["fast"], "interval": 200,
          "policy": "lru"}


@pytest.fixture
def tiers(config: VmConfig) -> VmConfig:
    """A VM with tiers, whose guest writes to few of its pages, and to none by chance."""
    return replace(config.with_guest(hot=5, hotwrite=100, coldwrite=0, coldevery=64),
                   ram="tiers")


def tiered(config: VmConfig, options: str = "") -> VmConfig:
    """The same with an object that swaps pages."""
    return replace(config, extra=(
        *config.extra, *tiers_of.tiering_arguments(config.ram_mib, options)))


def tiering(vm: Vm) -> Json:
    """What query-memory-tiering says of the only one."""
    found: Json = vm.qmp.execute("query-memory-tiering")[0]
    return found


def wait_scans(vm: Vm, count: int) -> Json:
    """Wait for so many scans more."""
    wanted = tiering(vm)["scans"] + count
    poll_until(f"{count} scans", lambda: tiering(vm)["scans"] >= wanted, 120)
    return tiering(vm)


def fast_share(vm: Vm, scans: int = 10) -> float:
    """Of the pages that the next scans see written, the share in fast memory."""
    before = tiering(vm)
    after = wait_scans(vm, scans)
    fast = after["fast-writes"] - before["fast-writes"]
    slow = after["slow-writes"] - before["slow-writes"]
    assert fast + slow, "the guest writes"
    return float(fast / (fast + slow))


def test_writes_move_to_fast_memory(vms: StartVm, tiers: VmConfig) -> None:
    vm = vms("tiered", tiered(tiers, ",policy=mq,limit=0"))
    wait_scans(vm, 3)
    before = fast_share(vm)
    vm.qmp.execute("qom-set", {"path": "/objects/mt", "property": "limit", "value": 1000})
    poll_until("most writes are to fast memory", lambda: fast_share(vm) > 0.9, 120)
    info = tiering(vm)
    assert before < 0.5
    assert info["swapped"] > 0 and info["pairs"] >= info["swapped"]
    assert info["swapper"] == tiers_of.swapper() and info["swapper-reason"]
    assert info["fast-size"] == tiers_of.fast_mib(tiers.ram_mib) * MIB
    assert info["fast-size"] + info["slow-size"] == tiers.ram_bytes
    vm.guest.verify()


def test_swaps_without_end_lose_no_byte(vms: StartVm, tiers: VmConfig) -> None:
    """LRU with much to swap: the hot part of the guest is larger than the fast memory.

    Two processors, one of which does not wait for the other.
    """
    busy = replace(tiers, smp=2).with_guest(hot=60, hotwrite=50, coldwrite=20, coldevery=8)
    vm = vms("tiered", tiered(busy, ",policy=lru"))
    poll_until("many pages were swapped", lambda: tiering(vm)["swapped"] >= 5000, 120)
    vm.guest.wait_passes(1)
    vm.guest.verify()
    assert vm.status() == "running"


def test_killed_while_it_swaps(vms: StartVm, tiers: VmConfig) -> None:
    """Its memory is nobody's then, and the next VM's."""
    busy = tiered(tiers.with_guest(hot=60, hotwrite=50, coldwrite=20, coldevery=8), ",policy=lru")
    for name in ("first", "second"):
        vm = vms(name, busy)
        poll_until("pages are swapped", lambda: tiering(vm)["swapped"] > 1000, 120)
        vm.kill()
    vm = vms("third", busy)
    poll_until("pages are swapped", lambda: tiering(vm)["swapped"] > 1000, 120)
    vm.guest.verify()


def test_what_is_told(vms: StartVm, tiers: VmConfig) -> None:
    vm = vms("tiered", tiered(tiers, ",policy=mq,parameters=life-time-ms=700"))
    poll_until("pages were swapped", lambda: tiering(vm)["swapped"] > 0, 60)
    info = tiering(vm)
    assert info["id"] == "mt" and info["memdev"] == "pc.ram" and info["policy"] == "mq"
    assert {"mq", "lru", "none"} <= {policy["name"] for policy in info["policies"]}
    assert {p["name"]: p["value"] for p in info["parameters"]}["life-time-ms"] == 700
    assert info["source"] and info["misses"]
    assert info["pairs"] == info["swapped"] + sum(r["pairs"] for r in info["refused"])
    text = vm.hmp("info memory_tiering")
    assert re.search(rf"swaps by: +{tiers_of.swapper()}", text) and "mq" in text
    events = [event for event in vm.qmp.poll_events() + vm.qmp.events
              if event["event"] == "MEMORY_TIERING_SWAPPED"]
    assert events and events[0]["data"]["swapped"] > 0 and events[0]["data"]["time"] > 0


def test_properties_change_at_run_time(vms: StartVm, tiers: VmConfig) -> None:
    vm = vms("tiered", tiered(tiers.with_guest(hot=60, hotwrite=50), ",policy=none"))
    poll_until("decisions are made", lambda: tiering(vm)["decisions"] > 1, 60)
    assert tiering(vm)["swapped"] == 0

    def set_property(name: str, value: object) -> None:
        vm.qmp.execute("qom-set", {"path": "/objects/mt", "property": name, "value": value})

    for name, value, error in (("policy", "best", "policy"), ("interval", 0, "at least 1"),
                               ("limit", 5000, "at most 4096"),
                               ("memdev", "x", "cannot be changed"),
                               ("parameters", ["colour=1"], "colour"),
                               ("parameters", ["colour"], "NAME=NUMBER")):
        with pytest.raises(QmpError, match=error):
            set_property(name, value)
    set_property("policy", "lru")
    set_property("interval", 200)
    poll_until("pages are swapped", lambda: tiering(vm)["swapped"] > 0, 60)
    assert tiering(vm)["policy"] == "lru" and tiering(vm)["interval"] == 200

    with pytest.raises(QmpError, match="there is a memory-tiering already"):
        vm.qmp.execute("object-add", {**SECOND, "id": "second"})
    for _ in range(3):
        vm.qmp.execute("object-del", {"id": "mt"})
        assert vm.qmp.execute("query-memory-tiering") == []
        assert "no memory-tiering" in vm.hmp("info memory_tiering")
        # It finds pages where the one before has left them.
        vm.qmp.execute("object-add", {**SECOND, "id": "mt"})
        poll_until("pages are swapped", lambda: tiering(vm)["swapped"] > 300, 60)
        vm.guest.verify()


def test_containers_come_and_go(vms: StartVm, tiers: VmConfig) -> None:
    """Beside a running guest, which waits for nobody."""
    vm = vms("plain", replace(tiers, ram="default"))
    for _ in range(20):
        vm.qmp.execute("object-add", {"qom-type": "memory-backend-container", "id": "more",
                                      "size": MIB})
        vm.qmp.execute("object-del", {"id": "more"})
    with pytest.raises(QmpError, match="too large"):
        vm.qmp.execute("object-add", {"qom-type": "memory-backend-container", "id": "more",
                                      "size": (1 << 64) - 4096})
    vm.guest.verify()


def test_migrates_to_an_ordinary_vm_and_back(vms: StartVm, tiers: VmConfig) -> None:
    """While pages are swapped, too: they rest while the VM migrates by this way to swap."""
    plain = replace(tiers, ram="default")
    source = vms("source", tiered(tiers, ",policy=lru"))
    poll_until("pages were swapped", lambda: tiering(source)["swapped"] > 100, 60)
    middle = vms("middle", plain, incoming=True)
    prepare(source, middle)
    start_stock(source, middle.listen())
    complete(source, middle)
    middle.guest.verify()
    source.end()  # the memory is its own until then
    back = vms("back", tiered(tiers, ",policy=lru"), incoming=True)
    prepare(middle, back)
    start_stock(middle, back.listen())
    complete(middle, back)
    poll_until("pages were swapped again", lambda: tiering(back)["swapped"] > 100, 60)
    back.guest.verify()


def test_looked_at_and_saved(vms: StartVm, tiers: VmConfig, work: Work) -> None:
    """Monitor, dump and snapshots see what the guest sees, wherever pages lie."""
    disk = work.temp / "disk.qcow2"
    subprocess.run([qemu_binary().parent / "qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"],
                   check=True)
    vm = vms("tiered", replace(tiered(tiers, ",policy=lru"), extra=(
        *tiered(tiers, ",policy=lru").extra, "-drive",
        f"if=none,id=d,file={disk},format=qcow2")))
    poll_until("pages were swapped", lambda: tiering(vm)["swapped"] > 500, 60)
    vm.guest.hold()
    vm.qmp.execute("stop")
    tree = vm.hmp("info mtree -f")
    assert "pc.ram" in tree
    size = tiers.ram_bytes
    memory, dump = work.temp / "memory", work.temp / "dump"
    vm.qmp.execute("pmemsave", {"val": 0, "size": size, "filename": str(memory)}, timeout_s=60)
    vm.qmp.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{dump}"},
                   timeout_s=120)
    pages = pattern_pages(memory.read_bytes())
    assert len(pages) > tiers.pattern_mib * MIB // PAGE_BYTES * 8 // 10
    assert pages <= set().union(*map(pattern_pages, elf_segments(dump.read_bytes())))
    assert "error" not in vm.hmp("savevm one").lower()
    vm.qmp.execute("cont")
    vm.guest.go()
    vm.guest.wait_passes(1)
    swapped = tiering(vm)["swapped"]
    poll_until("pages were swapped since", lambda: tiering(vm)["swapped"] > swapped, 60)
    assert "error" not in vm.hmp("loadvm one").lower()
    vm.guest.verify()


@pytest.mark.parametrize("aio", ["threads", "native", "io_uring"])
def test_direct_io(config: VmConfig, work: Work, aio: str) -> None:
    """A disk with cache=none reads into and writes from memory that may have no struct pages.

    KINTSUGI_DISKS is a directory of a file system that pins memory for direct I/O, as that of
    `work` may not.
    """
    directory = Path(os.environ.get("KINTSUGI_DISKS", work.temp))
    disk, size = directory / f"disk-{aio}", 64 * 512
    content = random.Random(1).randbytes(size)
    disk.write_bytes(boot_sector(work).read_bytes())
    with disk.open("r+b") as file:
        file.seek(512)
        file.write(content)
    vm = Vm("direct", replace(config, ram="tiers", memory_mib=64, kernel=False, extra=(
        "-drive", f"if=none,id=d,file={disk},format=raw,cache=none,aio={aio}",
        "-device", "virtio-blk-pci,drive=d")), work)
    try:
        poll_until("the guest has read and written", lambda: "disk " in console(vm), 60)
        assert "disk ok" in console(vm)
    finally:
        vm.end()
    assert disk.read_bytes()[512 + size:512 + 2 * size] == content


TIERMEM_IOC_GRANT = 0x4018BB03  # linux/tiermem.h


def test_without_root(work: Work) -> None:
    """A manager grants memory to a file, and a QEMU without rights has that and no other."""
    if tiers_of.kind() != "tiermem":
        pytest.skip("this machine has no /dev/tiermem")
    slow = tiers_of.slow_address()
    code = boot_sector(work)
    work.temp.chmod(0o755)
    code.chmod(0o644)

    def run(path: str, *extra: str, fds: tuple[int, ...] = ()) -> str:
        piece = f"memory-backend-devmem,id=p,parent=c,size=64M,phy-offset={slow:#x},path={path}"
        child = subprocess.Popen(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--pdeathsig", "KILL",
             qemu_binary(), "-nodefaults", "-display", "none", "-machine", "q35,memory-backend=c",
             "-m", "64M", "-accel", "tcg", "-no-reboot", *firmware_arguments(), *extra,
             "-object", CONTAINER, "-object", piece, "-serial", "stdio",
             "-drive", f"file={code},format=raw,snapshot=on,if=none,id=d",
             "-device", "virtio-blk-pci,drive=d"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            pass_fds=fds, env={**os.environ, "TMPDIR": "/tmp"})
        assert child.stdout
        with child.stdout as output:
            line = next((text for text in output if "disk " in text or "annot" in text), "")
            child.kill()
            child.wait()
        return line

    assert "cannot map" in run("/dev/tiermem")
    with open("/dev/tiermem", "r+b", buffering=0) as file:
        fcntl.ioctl(file, TIERMEM_IOC_GRANT, struct.pack("<QQQ", slow, 64 * MIB, 0))
        passed = ("-add-fd", f"fd={file.fileno()},set=1")
        assert "disk ok" in run("/dev/fdset/1", *passed, fds=(file.fileno(),))
        assert "cannot map" in run("/dev/tiermem")  # another's now


def boot_sector(work: Work) -> Path:
    """The guest of diskguest.S, the start of a disk of 1 MiB."""
    code, disk = work.temp / "code.o", work.temp / "code"
    subprocess.run(["gcc", "-m32", "-c", "-o", code, REPO / "tests" / "guest" / "diskguest.S"],
                   check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", code, disk], check=True)
    with disk.open("ab") as file:
        file.truncate(MIB)
    return disk


def console(vm: Vm) -> str:
    """What the guest has printed."""
    return (vm.work.logs / f"{vm.name}.console").read_text(encoding="ascii", errors="replace")


def pattern_pages(content: bytes) -> set[bytes]:
    """The first 16 bytes of each data page of the pattern: its number and its generation."""
    magic = bytes.fromhex("0000474b")
    return {content[at:at + 16] for at in range(0, len(content) - 16, PAGE_BYTES)
            if content[at + 4:at + 8] == magic and content[at + 12:at + 16] == bytes(4)}


def elf_segments(content: bytes) -> list[bytes]:
    """What an ELF core dump has of memory."""
    table, = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    headers = [struct.unpack_from("<IIQQQQ", content, table + n * size) for n in range(count)]
    return [content[offset:offset + length] for kind, _, offset, _, _, length in headers
            if kind == 1]


ERRORS = [
    ((PIECE + ",size=64M,path={file}",), "parent 'c' does not exist: create it before"),
    ((CONTAINER, PIECE + ",size=32M,path={file}"), "hole from 0x2000000 to 0x4000000"),
    ((CONTAINER,), "hole from 0x0 to 0x4000000"),
    ((CONTAINER, PIECE + ",size=48M,path={file}",
      "memory-backend-devmem,id=q,parent=c,offset=32M,size=32M,path={file2}"), "overlaps 'p'"),
    ((CONTAINER, PIECE + ",offset=32M,size=48M,path={file}"), "outside of 'c'"),
    ((CONTAINER, PIECE + ",size=0x1001,path={file}"), "size 0x1001 is not a multiple of 4096"),
    ((CONTAINER, PIECE + ",size=4M,phy-offset=5,path={file}"), "phy-offset 0x5 is not a multiple"),
    ((CONTAINER, PIECE + ",size=1T,path={file}"), "make it larger"),
    ((CONTAINER, PIECE + ",path={file}"), "size is missing"),
    ((CONTAINER, PIECE + ",size=4M,path=/dev/null"), "cannot map|neither"),
    ((CONTAINER, PIECE + ",size=4M,path={missing}"), "No such file"),
    ((CONTAINER, PIECE + ",size=4M,memdev=c"), "is in use already|no file to map"),
    ((CONTAINER, PIECE + ",size=4M,memdev=x"), "memdev 'x' does not exist"),
    ((CONTAINER, PIECE + ",size=4M,memdev=x,path=y"), "exclude each other"),
    ((CONTAINER, "memory-backend-ram,id=r,size=4M", PIECE + ",memdev=r"), "no file to map again"),
    ((CONTAINER, PIECE + ",size=32M,path={file}",
      "memory-backend-devmem,id=q,parent=c,offset=32M,size=32M,path={file}"), "is in use, by an"),
    (("memory-backend-ram,id=c,size=4M", PIECE + ",size=4M,path={file}"),
     "is a memory-backend-ram and not a"),
    (("memory-backend-container,id=c,size=64M,prealloc=on",), "cannot have prealloc=on"),
    (("memory-backend-container,id=c,size=64M,host-nodes=0,policy=bind",), "host-nodes"),
    (("memory-backend-container,id=c,size=64M,share=on",), "share=on"),
    (("memory-backend-container,id=c,size=0x1001",), "not a multiple of the host's page size"),
    ((CONTAINER, PIECE + ",size=64M,path={file}", "memory-tiering,id=t,memdev=c"),
     "fast is missing"),
    ((CONTAINER, PIECE + ",size=64M,path={file}", "memory-tiering,id=t,memdev=c,fast=x"),
     "'x' is not a piece of 'c'"),
    ((CONTAINER, PIECE + ",size=64M,path={file}", "memory-tiering,id=t,memdev=c,fast=p"),
     "all of 'c' is fast"),
    (("memory-backend-ram,id=c,size=64M", "memory-tiering,id=t,memdev=c"),
     "fast-nodes and slow-nodes are needed"),
    (("memory-backend-ram,id=c,size=64M",
      "memory-tiering,id=t,memdev=c,fast-nodes=0,slow-nodes=0"), "in fast-nodes and in slow-nodes"),
    (("memory-backend-ram,id=c,size=64M", "memory-tiering,id=t,memdev=c,fast-nodes=0,"
      "slow-nodes=1,fast-size=64M"), "less than the memory's"),
    (("memory-backend-ram,id=c,size=64M", "memory-tiering,id=t,memdev=x"), "not a memory backend"),
]


@pytest.mark.parametrize("objects,error", ERRORS, ids=lambda value: None)
def test_what_cannot_be(work: Work, objects: tuple[str, ...], error: str) -> None:
    """Each mistake ends QEMU with a sentence that says what to change."""
    names = {"file": work.temp / "one", "file2": work.temp / "two",
             "missing": work.temp / "missing"}
    for name in ("file", "file2"):
        with names[name].open("wb") as file:
            file.truncate(64 * MIB)
    done = subprocess.run(
        [qemu_binary(), "-nodefaults", "-display", "none", "-S", "-machine",
         "q35,memory-backend=c", "-m", "64M", "-monitor", "stdio",
         *(word for value in objects for word in ("-object", value.format(**names)))],
        input="quit\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        check=False)
    assert done.returncode != 0 and re.search(error, done.stdout), done.stdout


def test_physical_memory_of_the_host_is_refused(work: Work) -> None:
    """/dev/mem does not give what the host's kernel uses, whatever its options are."""
    if not Path("/dev/mem").exists():
        pytest.skip("this machine has no /dev/mem")
    ram = next(line for line in Path("/proc/iomem").read_text(encoding="ascii").splitlines()
               if "System RAM" in line and int(line.split("-")[0], 16) >= MIB)
    with pytest.raises(HarnessError, match="the host has 'System RAM' at"):
        Vm("refused", replace(VmConfig(), ram="default", memory_mib=64, extra=(
            "-object", CONTAINER, "-object",
            f"{PIECE},size=4M,path=/dev/mem,phy-offset=0x{ram.split('-')[0].strip()}")), work)


def test_one_range_is_one_vms(vms: StartVm, tiers: VmConfig, work: Work) -> None:
    shared = work.temp / "range"
    with shared.open("wb") as file:
        file.truncate(64 * MIB)
    extra = ("-object", CONTAINER, "-object", f"{PIECE},size=64M,path={shared}",
             "-device", "pc-dimm,id=d,memdev=c")
    config = replace(tiers, ram="default", extra=("-m", f"{tiers.ram_mib}M,slots=1,maxmem=8G",
                                                  *extra))
    vms("first", config, incoming=True)
    with pytest.raises(HarnessError, match="is in use, by another piece or VM"):
        vms("second", config, incoming=True)


def test_refused_by_name(vms: StartVm, tiers: VmConfig,
                         make_setup: Callable[..., SplitSetup]) -> None:
    vm = vms("tiers", tiers)
    for name in ("postcopy-ram", "background-snapshot"):
        with pytest.raises(QmpError, match=f"'pc.ram' cannot be used with.*{name}"):
            vm.qmp.execute("migrate-set-capabilities",
                           {"capabilities": [{"capability": name, "state": True}]})
    for gone in ("fast", "pc.ram"):
        with pytest.raises(QmpError, match="in use|can not be deleted"):
            vm.qmp.execute("object-del", {"id": gone})
    vm.guest.verify()

    setup = make_setup(replace(tiers, ram="default"))
    reason = setup.refused(setup.start_destination(ram="tiers"))
    assert "'pc.ram' cannot be used with remote memory" in reason
    setup.check_source_unharmed()


def test_help() -> None:
    """What exists can be found without a manual."""
    for name, words in (("memory-backend-devmem", ("phy-offset", "parent", "memdev")),
                        ("memory-tiering", ("fast-nodes", "policy", "limit"))):
        text = subprocess.run([qemu_binary(), "-object", f"{name},help"], stdout=subprocess.PIPE,
                              text=True, check=True).stdout
        assert all(word in text for word in words)
    text = subprocess.run([qemu_binary(), "-object", "help"], stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    assert "memory-backend-container" in text and "memory-tiering" in text
