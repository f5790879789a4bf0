# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that `make kernel-deb` packs, in an emulated AMD host: it boots, its modules load, and
the series' selftests pass there too.

pytest collects this file only where it is named, as `make test-kernel-deb` does: the build before
it takes about an hour.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from emulated import host, selftests
from emulated.amd import AmdHost
from test_selftests import APPEND

PROGRAMS = ("kvm/x86_64/access_bits_test", "mm/uffd-pageout", "mm/ksm_sharing",
            "tiermem/tiermem_test", "kvm/tiermem_test", "kvm/x86_64/unsafe_mappings_test")
SCRIPT = 'modprobe -d "$1" kvm_amd && lsmod | grep -w ^kvm_amd && shift && exec "$@"'
# It has far more to set up than the kernel made for these hosts.
SLOWER = 3.0


@pytest.fixture(scope="session", name="unpacked")
def _unpacked(tmp_path_factory) -> Path:
    """The package's files; there is one package of a kernel."""
    packages = list((host.BUILD / "kernel-deb").glob("linux-image-*.deb"))
    assert len(packages) == 1, "make kernel-deb"
    root = tmp_path_factory.mktemp("kernel")
    subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(root)], check=True)
    return root


@pytest.mark.parametrize("name", PROGRAMS)
def test_selftest(name, unpacked, run_host):
    row, = (row for row in selftests.read_table()
            if row.name == name and AmdHost.name in row.hosts)
    kernel, = (unpacked / "boot").glob("vmlinuz-*")
    outcome = run_host(
        "sh", "-c", SCRIPT, "sh", str(unpacked), str(row.path), *row.arguments,
        timeout_s=row.timeout_s * SLOWER, cwd=row.path.parent,
        config=AmdHost(kernel=kernel, cpus=row.cpus, append=APPEND[row.collection]))
    text = (outcome.stdout + outcome.stderr).decode(errors="replace")
    print(text)
    assert outcome.status == 0
    assert outcome.complaints() == []
    assert kernel.name.endswith("-kintsugi")
