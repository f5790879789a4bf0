# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/source_tree.py --project linux: what differs from QEMU's tree."""

import os
import shutil
import tarfile

import pytest

PATCH1, PATCH2 = "0001-mm-ksm-Add-a-line.patch", "0002-selftests-ksm-Add-a-test.patch"
TEST = "tools/testing/selftests/mm/ours.c"


@pytest.fixture
def filled(linux):
    """A tree with two patches, exported; the second adds a file."""
    linux.ok("tree")
    linux.commit("mm/ksm.c", "int line_20;", "int line_20;\nint ours;", "mm/ksm: Add a line")
    linux.add(TEST, "int test;\n", "selftests/ksm: Add a test")
    linux.ok("refresh")
    return linux


def test_empty_series_gives_upstream(linux):
    linux.ok("tree")
    before = linux.content()
    assert linux.git("rev-parse", "HEAD") == linux.git("rev-parse", "base^{commit}")
    assert os.access(linux.tree / "scripts/run.sh", os.R_OK)
    linux.ok("refresh")
    assert linux.content() == before
    assert "as the repository says" in linux.ok("status")


def test_patches_carry_their_new_files(filled):
    content = filled.content()
    assert set(content) == {"series", PATCH1, PATCH2, "config/host.config"}
    assert b"+int test;" in content[PATCH2]
    assert content["series"].decode() == f"# In this order.\n{PATCH1}\n{PATCH2}\n"


def test_topics_and_their_cover_letters_stay(filled):
    """Comments above the patches name the topics, also when patches come, change and go."""
    series = filled.repo / "series"
    series.write_text(f"# Topics.\n# --- ksm\n{PATCH1}\n# --- tests\n{PATCH2}\n",
                      encoding="utf-8")
    (filled.repo / "tests.cover").write_text("Subject: tests\n", encoding="utf-8")
    filled.ok("tree")
    filled.commit("mm/ksm.c", "int line_30;", "int line_30;\nint more;", "mm/ksm: Add another")
    filled.git("commit", "-q", "--amend", "-m", "mm/ksm: Add another\n\nFixes: nothing")
    filled.ok("refresh")
    assert series.read_text(encoding="utf-8") == (
        f"# Topics.\n# --- ksm\n{PATCH1}\n# --- tests\n{PATCH2}\n0003-mm-ksm-Add-another.patch\n")
    filled.git("rebase", "-q", "--onto", "HEAD~2", "HEAD~1")   # without the second
    filled.ok("refresh")
    assert series.read_text(encoding="utf-8") == (
        f"# Topics.\n# --- ksm\n{PATCH1}\n# --- tests\n0002-mm-ksm-Add-another.patch\n")
    assert filled.content()["tests.cover"] == b"Subject: tests\n"
    assert "as the repository says" in filled.ok("status")


def test_round_trip_gives_the_same_bytes(filled):
    before, head = filled.content(), filled.git("rev-parse", "HEAD")
    shutil.rmtree(filled.tree)
    shutil.rmtree(filled.directory / "cache")
    filled.ok("tree")
    assert filled.git("rev-parse", "HEAD") == head
    assert (filled.tree / TEST).read_text(encoding="utf-8") == "int test;\n"
    filled.ok("refresh")
    assert filled.content() == before


def test_new_file_that_is_in_no_commit_is_refused(filled):
    before = filled.content()
    filled.write(filled.tree, "mm/new.c", "int new;\n")
    filled.write(filled.tree, "mm/built.o", "ignored\n")
    done = filled.run("refresh")
    assert done.returncode == 1 and "mm/new.c" in done.stdout and "built.o" not in done.stdout
    assert filled.content() == before
    filled.git("add", "mm/new.c")
    done = filled.run("refresh")
    assert done.returncode == 1 and "mm/new.c" in done.stdout
    filled.git("commit", "-q", "-m", "mm: Add a file")
    filled.ok("refresh")
    assert b"+int new;" in filled.content()["0003-mm-Add-a-file.patch"]


def test_dropped_patch_takes_its_file_along(filled):
    (filled.repo / "series").write_text(f"{PATCH1}\n", encoding="utf-8")
    filled.ok("tree")
    assert not (filled.tree / TEST).exists()
    assert "int ours;" in (filled.tree / "mm/ksm.c").read_text(encoding="utf-8")


def test_commits_of_another_branch_can_be_taken_over(filled):
    """How a series made elsewhere is integrated: pick its commits, refresh."""
    filled.git("checkout", "-q", "-b", "topic", "base")
    filled.add("virt/kvm/ours.c", "int kvm;\n", "KVM: Add a file")
    filled.git("checkout", "-q", "kintsugi")
    filled.git("cherry-pick", "topic")
    filled.ok("refresh")
    assert b"+int kvm;" in filled.content()["0003-KVM-Add-a-file.patch"]
    assert "as the repository says" in filled.ok("status")


def test_other_version_is_refused(linux):
    makefile = linux.UPSTREAM["Makefile"].replace("PATCHLEVEL = 12", "PATCHLEVEL = 13")
    linux.env["LINUX_TARBALL"] = str(linux.make_tarball({"Makefile": makefile}, "new.tar.xz"))
    done = linux.run("tree")
    assert done.returncode == 1 and "Linux 6.13.99" in done.stdout


@pytest.mark.parametrize("suffix, mode", [("gz", "gz"), ("bz2", "bz2"), ("tar", "")])
def test_tarballs_of_any_compression_will_do(linux, suffix, mode):
    path = linux.directory / f"linux.{suffix}"
    with tarfile.open(path, f"w:{mode}") as tar:
        tar.add(linux.directory / "upstream" / linux.TOP, arcname=linux.TOP)
    linux.env["LINUX_TARBALL"] = str(path)
    linux.ok("tree")
    assert "line_39" in (linux.tree / "mm/ksm.c").read_text(encoding="utf-8")


def test_what_is_no_archive_is_refused(linux):
    path = linux.directory / "broken.tar.xz"
    path.write_bytes(linux.tarball.read_bytes()[:200])
    linux.env["LINUX_TARBALL"] = str(path)
    done = linux.run("tree")
    assert done.returncode == 1 and "does not unpack" in done.stdout
    assert not linux.tree.exists()
