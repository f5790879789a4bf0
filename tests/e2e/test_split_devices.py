# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs as users have them: disks, network, VNC, TLS, sandbox, NUMA. Each is split and runs on."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kintsugi.migrate import complete
from kintsugi.split import SplitSetup
from kintsugi.util import MIB, Work, qemu_binary
from kintsugi.vm import VmConfig

pytestmark = pytest.mark.split
# What libvirt starts every VM with.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
NET = "virtio-net-pci,netdev=net0,romfile="


def run(*command: str | Path) -> None:
    """A command that must succeed."""
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def make_certificates(directory: Path) -> None:
    """What tls-creds-x509 wants of a server."""
    directory.mkdir()
    ca_key, ca, request = (directory / name for name in ("ca-key.pem", "ca-cert.pem", "request"))
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca",
        "-keyout", ca_key, "-out", ca)
    run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
        "-keyout", directory / "server-key.pem", "-out", request)
    run("openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-days", "2",
        "-set_serial", "1", "-out", directory / "server-cert.pem")


def split(work: Work, config: VmConfig, **changes: object) -> None:
    """Boot it, split it, and see it run on with all of its memory right."""
    setup = SplitSetup(work, None, config)
    try:
        setup.source.guest.wait_ready()
        destination = setup.start_destination(**changes)
        setup.start_split(destination.listen())
        complete(setup.source, destination)
        destination.guest.wait_beats()
        destination.guest.verify()
    finally:
        setup.close()


@pytest.fixture
def small(config: VmConfig) -> VmConfig:
    """Memory is not what these are about."""
    return replace(config, pattern_mib=min(config.pattern_mib, 96))


@pytest.mark.parametrize("aio", ["threads", "native", "io_uring"])
def test_disk(work: Work, small: VmConfig, aio: str) -> None:
    """Direct I/O in an iothread, and a qcow2 image over another."""
    img = qemu_binary().parent / "qemu-img"
    disk, base, overlay = (Path(work.temp) / name for name in ("disk", "base", "overlay"))
    run("truncate", "-s", str(16 * MIB), disk)
    run(img, "create", "-f", "qcow2", base, "64M")
    run(img, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
    split(work, replace(
        small, devices=("virtio-blk-pci,drive=d0,iothread=io0,id=virtio0",
                        "virtio-blk-pci,drive=d1,id=virtio1"),
        extra=("-object", "iothread,id=io0",
               "-drive", f"if=none,id=d0,file={disk},format=raw,cache=none,aio={aio}",
               "-drive", f"if=none,id=d1,file={overlay},format=qcow2")))


def test_user_network_vnc_tls_and_sandbox(work: Work, small: VmConfig) -> None:
    certificates = work.temp / "tls"
    make_certificates(certificates)
    # The destination listens elsewhere, as on another host.
    common = ("-netdev", "user,id=net0", "-sandbox", SANDBOX, "-object",
              f"tls-creds-x509,id=tls0,dir={certificates},endpoint=server,verify-peer=off")
    vnc = [("-vnc", f"unix:{work.temp}/vnc{side},tls-creds=tls0") for side in range(2)]
    split(work, replace(small, devices=(NET, "VGA,romfile="), extra=common + vnc[0]),
          extra=common + vnc[1])


def test_memory_bound_to_a_node(work: Work, small: VmConfig) -> None:
    """RAM of a backend on a NUMA node of the host, and more of it on another of the guest."""
    half = small.ram_mib * MIB // 2
    nodes = [word for node in range(2) for word in (
        "-object", f"memory-backend-ram,id=m{node},size={half},host-nodes=0,policy=bind",
        "-numa", f"node,nodeid={node},memdev=m{node}")]
    split(work, replace(small, extra=tuple(nodes)))


@pytest.mark.skipif(not os.path.exists("/dev/vhost-net"), reason="this machine has no vhost-net")
def test_vhost_net(work: Work, small: VmConfig) -> None:
    taps = [("-netdev", f"tap,id=net0,vhost=on,script=no,downscript=no,ifname=kg{side}")
            for side in range(2)]
    split(work, replace(small, devices=(NET,), extra=taps[0]), extra=taps[1])


@pytest.mark.parametrize("tool", ["qemu-img", "qemu-io", "qemu-nbd",
                                  "storage-daemon/qemu-storage-daemon"])
def test_tool(tool: str) -> None:
    """Of the same build."""
    run(qemu_binary().parent / tool, "--version")
