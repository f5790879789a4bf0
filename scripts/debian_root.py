#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clean roots of any Debian release that this machine's mirror has, to build and to test in.

    debian_root.py RELEASE COMMAND...

Runs a command of this checkout in a root of RELEASE, as on a machine of that release with nothing
installed. The root is made once, build/RELEASE/root, and keeps what the command installs. The
checkout is at its own path there, with build/RELEASE/build in the place of build/; the cache of
downloads and the compiler's are this machine's. Needs root.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import debian_fetch

REPO = pathlib.Path(__file__).resolve().parent.parent
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_ON = ("JOBS", "TERM")

# In a mount namespace of its own, so nothing stays mounted however it ends.
IN_ROOT = """
root=$1
shift
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"""


def apt_settings():
    """The machine's files of settings for apt, but for those of packages."""
    files = sorted(pathlib.Path("/etc/apt/apt.conf.d").iterdir())
    done = subprocess.run(["dpkg-query", "-S", *map(str, files)], text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    packaged = {line.rpartition(": ")[2] for line in done.stdout.splitlines()}
    return [path for path in files if str(path) not in packaged]


def unpack(codename, path):
    """A clean minimal root of a release at `path`, with this machine's settings for apt."""
    path.mkdir(parents=True)
    tarball = debian_fetch.root_tarball(codename)
    subprocess.run(["tar", "-C", str(path), "-xf", str(tarball)], check=True)
    shutil.copy("/etc/resolv.conf", path / "etc/resolv.conf")
    for settings in apt_settings():
        shutil.copy(settings, path / "etc/apt/apt.conf.d")
    # Nothing is started on installation.
    policy = path / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    policy.chmod(0o755)


def build_directory(codename=None):
    """What build/ is for a release, by default for this machine as it is."""
    return REPO / "build" / codename / "build" if codename else REPO / "build"


def kept_root(codename):
    """The root of a release that is kept under build/, made if need be."""
    root = REPO / "build" / codename / "root"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="root-", dir=root.parent) as temp:
            unpack(codename, pathlib.Path(temp) / "made")
            (pathlib.Path(temp) / "made").rename(root)
    return root


def compiler_cache():
    done = subprocess.run(["ccache", "--get-config", "cache_dir"], text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return pathlib.Path(done.stdout.strip() or "~/.cache/ccache").expanduser()


def command_in(codename, command):
    """What to run on this machine to run `command` in the kept root of a release."""
    root = kept_root(codename)
    mounts = {REPO: REPO, build_directory(codename): build_directory(),
              debian_fetch.cache_dir(): "/root/.cache/kintsugi",
              compiler_cache(): "/root/.cache/ccache"}
    for directory in mounts:
        directory.mkdir(parents=True, exist_ok=True)
    environment = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}
    environment.update((name, os.environ[name]) for name in PASSED_ON if name in os.environ)
    return ["unshare", "--mount", "sh", "-ec", IN_ROOT, "sh", str(root),
            *(str(path) for pair in mounts.items() for path in pair), "--",
            "env", "-i", f"--chdir={REPO}",
            *(f"{name}={value}" for name, value in environment.items()), *command]


def main():
    codename, *command = sys.argv[1:] or [""]
    if not re.fullmatch(r"[a-z]+", codename) or not command:
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit(f"[{codename}] error: a root of another release is made by root: run it as root")
    try:
        command = command_in(codename, command)
    except (debian_fetch.FetchError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"[{codename}] error: {error}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
