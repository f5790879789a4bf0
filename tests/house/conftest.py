# SPDX-License-Identifier: GPL-2.0-or-later
"""A small upstream, repository and cache in a private directory for each test."""

import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

UPSTREAM = {
    "VERSION": "10.0.99\n",
    "meson.build": "project('qemu')\nfiles = [\n  'a.c',\n  'b.c',\n]\nend = 1\n",
    "migration/ram.c": "".join(f"int line_{n};\n" for n in range(40)),
    ".gitignore": "/build\n*.ignored\n",
}


class House:
    """One repository (qemu/patches, qemu/overlay), its tree, and the command that joins them."""

    UPSTREAM, TOP = UPSTREAM, "qemu-10.0.99"
    VARIABLE, ARGUMENTS = "QEMU_TARBALL", ()

    def __init__(self, directory):
        self.directory = directory
        self.repo = directory / "repo"
        self.tree = directory / "tree"
        self.repo.mkdir()
        self.place()
        self.tarball = self.make_tarball(self.UPSTREAM)
        self.env = dict(os.environ, XDG_CACHE_HOME=str(directory / "cache"))
        self.env[self.VARIABLE] = str(self.tarball)

    def place(self):
        self.patches = self.repo / "patches"
        self.overlay = self.repo / "overlay"
        self.patches.mkdir()
        self.overlay.mkdir()

    def make_tarball(self, files, name="source.tar.xz"):
        source = self.directory / "upstream" / self.TOP
        for path, text in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(text, encoding="utf-8")
        path = self.directory / name
        with tarfile.open(path, "w:xz") as tar:
            tar.add(source, arcname=self.TOP)
        return path

    def run(self, *args):
        return subprocess.run(
            [str(ROOT / "scripts" / "source_tree.py"), *args, *self.ARGUMENTS,
             "--repo", str(self.repo), "--tree", str(self.tree)],
            env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False)

    def ok(self, *args):
        done = self.run(*args)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def git(self, *args):
        return subprocess.run(["git", "-c", "safe.directory=*", *args], cwd=self.tree, text=True,
                              env=dict(self.env, GIT_CONFIG_GLOBAL="/dev/null"),
                              stdout=subprocess.PIPE, check=True).stdout

    def commit(self, path, old, new, subject):
        text = (self.tree / path).read_text(encoding="utf-8")
        assert old in text
        (self.tree / path).write_text(text.replace(old, new, 1), encoding="utf-8")
        self.git("commit", "-q", "-a", "-m", f"{subject}\n\nWhy.\n\nUpstream: N/A, a test.")

    def write(self, side, path, text):
        target = side / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def content(self):
        """{path: bytes} of the repository's side."""
        return {str(path.relative_to(self.repo)): path.read_bytes()
                for path in sorted(self.repo.rglob("*")) if path.is_file()}

    def times(self):
        """{path: mtime in ns} of the tree without .git."""
        return {str(path.relative_to(self.tree)): path.stat().st_mtime_ns
                for path in self.tree.rglob("*")
                if path.is_file() and ".git" not in path.relative_to(self.tree).parts}


class LinuxHouse(House):
    """The same for Linux: the series lies in the repository's directory, and has no overlay."""

    UPSTREAM = {
        "Makefile": "# SPDX-License-Identifier: GPL-2.0\nVERSION = 6\nPATCHLEVEL = 12\n"
                    "SUBLEVEL = 99\nEXTRAVERSION =\n",
        "mm/ksm.c": "".join(f"int line_{n};\n" for n in range(40)),
        "scripts/run.sh": "#!/bin/sh\n",
        ".gitignore": "*.o\n",
    }
    TOP, VARIABLE, ARGUMENTS = "linux-source-6.12", "LINUX_TARBALL", ("--project", "linux")

    def place(self):
        self.patches = self.repo
        (self.repo / "config").mkdir()
        (self.repo / "config" / "host.config").write_text("CONFIG_KVM=y\n", encoding="utf-8")
        (self.repo / "series").write_text("# In this order.\n", encoding="utf-8")

    def add(self, path, text, subject):
        """Commits a new file."""
        self.write(self.tree, path, text)
        self.git("add", path)
        self.git("commit", "-q", "-m", f"{subject}\n\nWhy.\n\nUpstream: N/A, a test.")


@pytest.fixture
def linux(tmp_path):
    return LinuxHouse(tmp_path)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.fixture
def filled(house):
    """A house with two patches and one overlay file, exported."""
    house.ok("tree")
    house.commit("meson.build", "'b.c',", "'b.c',\n  'ours.c',", "build: Add our file")
    house.commit("migration/ram.c", "int line_20;", "int line_20;\nint hook;", "migration: Hook")
    house.write(house.tree, "migration/ours.c", "int ours;\n")
    house.ok("refresh")
    return house
