# SPDX-License-Identifier: GPL-2.0-or-later
"""What the emulated hosts are made of: kernel options, initramfs, table of selftests."""

import subprocess
import sys

import kernel_config
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "hosts"))

# pylint: disable=wrong-import-position
from emulated import initramfs, selftests  # noqa: E402


def test_options_that_kconfig_dropped_are_named():
    fragment = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=8\n# CONFIG_D is not set\nCONFIG_D=y\n"
    config = "CONFIG_A=y\nCONFIG_C=8\nCONFIG_D=y\n"
    assert kernel_config.differences(config, fragment) == []
    assert kernel_config.differences(config.replace("8", "9"), fragment) == [
        "CONFIG_C=8 was asked for, but it is 9"]
    assert kernel_config.differences("CONFIG_B=y\n" + config, fragment) == [
        "CONFIG_B=n was asked for, but it is y"]


def test_initramfs_is_an_archive_that_cpio_reads(tmp_path):
    data = initramfs.archive({"init": (0o755, b"program"), "a/b/c": (0o600, b"")})
    listed = subprocess.run(["cpio", "-i", "--quiet", "-d"], cwd=tmp_path, input=data, check=True)
    assert listed.returncode == 0
    assert (tmp_path / "init").read_bytes() == b"program"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/b/c").read_bytes() == b""


def test_table_of_selftests():
    rows = selftests.parse_table(
        "# comment\n\nkvm x86_64/a amd,intel 2 10 -b '1 M' # why\nmm b amd 1 5")
    assert [row.name for row in rows] == ["kvm/x86_64/a -b 1 M", "mm/b"]
    assert rows[0].arguments == ("-b", "1 M") and rows[0].timeout_s == 10
    assert [row.cpus for row in rows] == [2, 1]
    assert len(selftests.parse_table("kvm a amd 1 1\nkvm a intel 2 2")) == 2
    assert selftests.read_table()


@pytest.mark.parametrize("text, why", [
    ("kvm a amd 1", "columns"), ("kvm a arm 1 10", "no such host: arm"),
    ("kvm a amd 1 soon", "no number of seconds"), ("kvm a amd 0 10", "no number of processors"),
    ("kvm a amd,intel 1 1\nkvm a intel 1 2", "twice")])
def test_wrong_table_is_refused(text, why):
    with pytest.raises(selftests.TableError, match=why):
        selftests.parse_table(text)
