# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/tidy.py finds what it is there to find, once each."""

import subprocess

import pytest
import tidy

SPDX = "/* SPDX-" + "License-Identifier: GPL-2.0-or-later */\n"
PATCH = ("From 0 Mon Sep 17 00:00:00 2001\nSubject: [PATCH] area: Do it\n\nWhy.\n\n"
         "Upstream: N/A, a test.\n---\n a | 1 +\n\ndiff --git a/a b/a\n--- a/a\n+++ b/a\n"
         "@@ -1 +1,2 @@\n x\n+files('ours.c')\n")


@pytest.fixture
def repository(tmp_path):
    def make(**extra):
        files = {"qemu/patches/0001-a.patch": PATCH, "qemu/patches/series": "0001-a.patch\n",
                 "qemu/overlay/hw/ours.c": SPDX + '#include "ours.h"\n',
                 "qemu/overlay/include/ours.h": SPDX, "README.md": "# Title\n"}
        files.update(extra.pop("files", {}))
        for name, text in files.items():
            if text is None:
                continue
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        return tidy.Repository(tmp_path)
    return make


def found(repo):
    return {check.__name__: len(list(check(repo))) for check in tidy.CHECKS if list(check(repo))}


def test_clean_repository(repository):
    assert not found(repository())


@pytest.mark.parametrize("check, name, text", [
    ("long_lines", "a.txt", "x" * 101 + "\n"),
    ("stray_markers", "a.txt", "TO" + "DO: later\n"),
    ("big_blobs", "a.bin", "\0big" * (512 * 257)),
    ("orphan_overlay", "qemu/overlay/hw/orphan.c", SPDX),
    ("series_listed", "qemu/patches/0002-b.patch", PATCH),
    ("series_listed", "qemu/patches/series", "0001-a.patch\n0002-gone.patch\n"),
    ("patch_headers", "qemu/patches/0001-a.patch", PATCH.replace("Upstream:", "upstream")),
    ("patch_headers", "qemu/patches/0001-a.patch",
     PATCH.replace("---\n", "Signed-off-by: A <a@b>\n---\n", 1)),
    ("dead_links", "README.md", "see [this](docs/none.md)\n"),
    ("dead_links", "README.md", "# Title\nsee [this](#other)\n"),
    ("spdx_headers", "a.py", "print()\n"),
    ("spdx_headers", "scripts/run", "#!/bin/sh\ntrue\n"),
    ("host_names", "a.txt", "http://py" + "pi.org/simple\n"),
    ("machine_paths", "a.txt", "see /ro" + "ot/notes\n"),
], ids=lambda value: value[:24].split("\0")[0].strip())
def test_finds(repository, check, name, text):
    assert found(repository(files={name: text})) == {check: 1}


def test_good_links(repository):
    text = "# A title, here\n[a](README.md) [b](#a-title-here) [c](https://example.org/x)\n"
    assert not found(repository(files={"README.md": text}))


def test_patch_for_linux_may_add_a_file(repository):
    patch = PATCH.replace("--- a/a", "new file mode 100644\n--- a/a")
    linux = {"linux-patches/0001-a.patch": patch, "linux-patches/series": "0001-a.patch\n"}
    assert not found(repository(files=linux))
    linux["linux-patches/0001-a.patch"] = patch.replace("Upstream:", "upstream")
    assert found(repository(files=linux)) == {"patch_headers": 1}
