# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/source_tree.py: the way between qemu/ and the git tree, and back."""

import os
import shutil

PATCH1, PATCH2 = "patches/0001-build-Add-our-file.patch", "patches/0002-migration-Hook.patch"


def test_refresh_exports_commits_and_new_files(filled):
    assert set(filled.content()) == {PATCH1, PATCH2, "patches/series",
                                     "overlay/migration/ours.c"}
    assert "as the repository says" in filled.ok("status")


def test_refresh_of_a_clean_tree_changes_nothing(filled):
    before, times = filled.content(), filled.times()
    filled.ok("refresh")
    assert filled.content() == before
    assert filled.times() == times


def test_fresh_tree_refreshes_to_the_same_bytes(filled):
    before = filled.content()
    shutil.rmtree(filled.tree)
    filled.ok("tree")
    filled.ok("refresh")
    assert filled.content() == before


def test_commits_are_reproducible(filled):
    head = filled.git("rev-parse", "HEAD")
    shutil.rmtree(filled.tree)
    shutil.rmtree(filled.directory / "cache")
    filled.ok("tree")
    assert filled.git("rev-parse", "HEAD") == head


def test_users_git_configuration_does_not_leak(filled, tmp_path):
    before = filled.content()
    (tmp_path / "gitconfig").write_text(
        "[diff]\n noprefix = true\n algorithm = patience\n[format]\n signOff = true\n"
        "[user]\n name = X\n email = x@y\n[core]\n abbrev = 40\n", encoding="utf-8")
    filled.env["GIT_CONFIG_GLOBAL"] = str(tmp_path / "gitconfig")
    shutil.rmtree(filled.tree)
    filled.ok("tree")
    filled.ok("refresh")
    assert filled.content() == before


def test_update_touches_only_what_changed(filled):
    other = filled.directory / "other"
    shutil.copytree(filled.tree, other, symlinks=True)
    filled.commit("migration/ram.c", "int hook;", "int hook2;", "migration: Change the hook")
    filled.ok("refresh")
    shutil.rmtree(filled.tree)
    os.rename(other, filled.tree)
    times = filled.times()
    filled.ok("tree")
    after = filled.times()
    assert {path for path in after if after[path] != times.get(path)} == {"migration/ram.c"}
    assert "hook2" in (filled.tree / "migration/ram.c").read_text(encoding="utf-8")


def test_overlay_edit_in_repository_reaches_the_tree(filled):
    filled.write(filled.overlay, "migration/ours.c", "int ours_2;\n")
    filled.write(filled.overlay, "new/dir/more.c", "int more;\n")
    times = filled.times()
    filled.ok("tree")
    after = filled.times()
    assert {path for path in after if after[path] != times.get(path)} == {
        "migration/ours.c", "new/dir/more.c"}
    assert filled.git("status", "--porcelain") == ""
    (filled.overlay / "new/dir/more.c").unlink()
    filled.ok("tree")
    assert not (filled.tree / "new").exists()


def test_overlay_edit_in_tree_survives_update_and_is_exported(filled):
    filled.write(filled.tree, "migration/ours.c", "int edited;\n")
    filled.write(filled.overlay, "another.c", "int another;\n")
    filled.ok("tree")
    assert (filled.tree / "migration/ours.c").read_text(encoding="utf-8") == "int edited;\n"
    done = filled.run("status")
    assert done.returncode == 3 and "edited: migration/ours.c" in done.stdout
    filled.ok("refresh")
    assert filled.content()["overlay/migration/ours.c"] == b"int edited;\n"
    assert filled.content()["overlay/another.c"] == b"int another;\n"


def test_overlay_deleted_in_tree_is_deleted_in_repository(filled):
    filled.write(filled.overlay, "keep.c", "int keep;\n")
    filled.ok("tree")
    (filled.tree / "migration/ours.c").unlink()
    filled.ok("refresh")
    assert "overlay/migration/ours.c" not in filled.content()
    assert "overlay/keep.c" in filled.content()


def test_git_clean_does_not_empty_the_overlay(filled):
    filled.git("clean", "-qfdx")
    assert filled.run("refresh").returncode == 1
    filled.ok("tree")
    assert (filled.tree / "migration/ours.c").exists()


def test_overlay_changed_on_both_sides_is_refused(filled):
    filled.write(filled.tree, "migration/ours.c", "int mine;\n")
    filled.write(filled.overlay, "migration/ours.c", "int yours;\n")
    for command in ("tree", "refresh"):
        done = filled.run(command)
        assert done.returncode == 1 and "migration/ours.c" in done.stdout
    assert (filled.tree / "migration/ours.c").read_text(encoding="utf-8") == "int mine;\n"
    filled.ok("tree", "--force")
    assert (filled.tree / "migration/ours.c").read_text(encoding="utf-8") == "int yours;\n"


def test_new_file_in_a_commit_becomes_overlay(filled):
    filled.write(filled.tree, "hw/added.c", "int added;\n")
    filled.git("add", "hw/added.c")
    filled.commit("meson.build", "'a.c',", "'a.c',\n  'added.c',", "hw: Add a device")
    filled.ok("refresh")
    content = filled.content()
    assert content["overlay/hw/added.c"] == b"int added;\n"
    assert b"hw/added.c" not in content["patches/0003-hw-Add-a-device.patch"]
    assert (filled.tree / "hw/added.c").exists()
    before = filled.content()
    filled.ok("refresh")
    assert filled.content() == before


def test_uncommitted_edits_are_not_exported_and_not_lost(filled):
    path = filled.tree / "migration/ram.c"
    path.write_text(path.read_text(encoding="utf-8") + "int wip;\n", encoding="utf-8")
    done = filled.run("refresh")
    assert done.returncode == 1 and "migration/ram.c" in done.stdout
    filled.ok("tree")  # nothing to carry over: leaves the edit alone
    assert "wip" in path.read_text(encoding="utf-8")


def test_series_changed_while_tree_has_edits_is_refused(filled):
    (filled.patches / "series").write_text("0001-build-Add-our-file.patch\n", encoding="utf-8")
    path = filled.tree / "meson.build"
    path.write_text(path.read_text(encoding="utf-8") + "# wip\n", encoding="utf-8")
    done = filled.run("tree")
    assert done.returncode == 1 and "qemu-refresh" in done.stdout
    assert "# wip" in path.read_text(encoding="utf-8")
    filled.ok("tree", "--force")
    assert filled.git("log", "--format=%s", "base..").split("\n")[0] == "build: Add our file"


def test_patch_that_needs_fuzz_is_refused(filled):
    path = filled.patches / "0002-migration-Hook.patch"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(" int line_22;", " int line_other;"), encoding="utf-8")
    done = filled.run("tree")
    assert done.returncode == 1 and "0002-migration-Hook.patch does not apply" in done.stdout


def test_patch_that_adds_a_file_is_refused(filled):
    path = filled.patches / "0002-migration-Hook.patch"
    path.write_text(path.read_text(encoding="utf-8") + (
        "diff --git a/x.c b/x.c\nnew file mode 100644\n--- /dev/null\n+++ b/x.c\n"
        "@@ -0,0 +1 @@\n+int x;\n"), encoding="utf-8")
    done = filled.run("tree")
    assert done.returncode == 1 and "x.c" in done.stdout


def test_series_keeps_its_comments(filled):
    series = filled.patches / "series"
    series.write_text("# head\n0001-build-Add-our-file.patch\n# --- hook\n"
                      "0002-migration-Hook.patch\n# tail\n", encoding="utf-8")
    filled.commit("meson.build", "end = 1", "end = 2", "build: Third")
    filled.ok("refresh")
    assert series.read_text(encoding="utf-8") == (
        "# head\n0001-build-Add-our-file.patch\n# --- hook\n0002-migration-Hook.patch\n"
        "0003-build-Third.patch\n# tail\n")


def test_broken_cache_and_half_made_tree_are_made_again(filled):
    head = filled.git("rev-parse", "HEAD")
    base, = (filled.directory / "cache" / "kintsugi").glob("base-*.git")
    for pack in base.glob("objects/pack/*.pack"):
        pack.chmod(0o644)
        pack.write_bytes(pack.read_bytes()[:100])
    shutil.rmtree(filled.tree)
    filled.tree.mkdir()
    (filled.tree / "half").write_text("made", encoding="utf-8")
    filled.ok("tree")
    assert filled.git("rev-parse", "HEAD") == head
    assert not (filled.tree / "half").exists()


def test_other_tarball_moves_the_base_and_keeps_times(filled):
    times = filled.times()
    filled.env["QEMU_TARBALL"] = str(filled.make_tarball({"VERSION": "10.0.100\n"}, "new.tar.xz"))
    filled.ok("tree")
    after = filled.times()
    assert {path for path in after if after[path] != times[path]} == {"VERSION"}
    assert filled.git("show", "base:VERSION") == "10.0.100\n"


def test_other_major_version_is_refused(house):
    house.env["QEMU_TARBALL"] = str(house.make_tarball({"VERSION": "11.0.0\n"}, "new.tar.xz"))
    done = house.run("tree")
    assert done.returncode == 1 and "11.0.0" in done.stdout


def test_stock_has_the_build_patches_only(filled):
    filled.ok("stock")
    stock = filled.directory / "tree-stock"
    assert "ours.c" in (stock / "meson.build").read_text(encoding="utf-8")
    assert "hook" not in (stock / "migration/ram.c").read_text(encoding="utf-8")
    assert not (stock / "migration/ours.c").exists()
    filled.ok("stock")
