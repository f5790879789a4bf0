#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds what each patch of the Linux series leads to, so that the series can be bisected.

After every patch: the kernel of the emulated hosts, with all that patches touch configured in
(linux-patches/config/prefixes.config), and the selftests that this patch touches, programs or
library. A warning of the compiler counts as a failure, and so does a source that the configuration
leaves out.
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "linux-prefixes"
OUTPUT = ROOT / "build" / NAME
TREE = OUTPUT / "tree"
CONFIG = ROOT / "linux-patches" / "config"
FRAGMENTS = (CONFIG / "host.config", CONFIG / "prefixes.config")
SELFTEST_RE = re.compile(r"tools/testing/selftests/([^/]+)/(.+)\.c")
# Some of the headers' macros are defined there once more.
UPSTREAM_WARNING_RE = re.compile(r'include/x86_64/processor\.h:.* "X86_\w+" redefined')
JOBS = os.environ.get("JOBS") or str(os.cpu_count())
MAKE = ("make", "-j", JOBS, "ARCH=x86", "CC=ccache gcc", "HOSTCC=ccache gcc",
        "KBUILD_BUILD_TIMESTAMP=2025-01-01")


class BuildError(Exception):
    """A patch does not build; what make said has been shown."""


def git(*words):
    return subprocess.run(["git", "-c", "safe.directory=*", "-C", TREE, *words], check=True,
                          stdout=subprocess.PIPE, text=True).stdout


def step(log, about, *command):
    env = {key: value for key, value in os.environ.items()
           if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    env.update(CCACHE_BASEDIR=str(ROOT), CCACHE_NOHASHDIR="1")
    done = subprocess.run([ROOT / "scripts" / "step.py", NAME, log, about, "--", *command],
                          env=env, check=False)
    warnings = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
                if ": warning: " in line and not UPSTREAM_WARNING_RE.fullmatch(line)]
    if done.returncode or warnings:
        raise BuildError("\n  ".join([f"failed: {about}", *warnings]))


def build(commit, number, about):
    git("checkout", "-q", "-f", "--detach", commit)
    logs = ROOT / "build" / "logs"
    fragment = OUTPUT / "fragments.config"
    step(logs / f"{NAME}-{number}-config.log", about, *MAKE, "-s", "-C", TREE,
         f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig")
    step(logs / f"{NAME}-{number}.log", about, *MAKE, "-C", TREE, "vmlinux", "headers")
    touched = git("diff-tree", "-r", "--name-only", "--diff-filter=d", f"{commit}^", commit)
    for path in re.findall(r".*\.c$", touched, re.M):
        if match := SELFTEST_RE.fullmatch(path):
            collection, program = match.groups()
            output = OUTPUT / "selftests" / collection
            if program.startswith("lib/"):
                program += ".o"
            output.mkdir(parents=True, exist_ok=True)
            step(logs / f"{NAME}-{number}-selftests.log", f"{about}: {program}", *MAKE,
                 "-C", TREE / "tools" / "testing" / "selftests" / collection, f"OUTPUT={output}",
                 f"KHDR_INCLUDES=-isystem {TREE}/usr/include", output / program)
        elif not (TREE / path).with_suffix(".o").exists():
            raise BuildError(f"failed: {about}: the configuration leaves out {path}")


def main():
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    subprocess.run([ROOT / "scripts" / "linux-worktree.sh", NAME, TREE], check=True)
    (OUTPUT / "fragments.config").write_text(
        "".join(path.read_text(encoding="utf-8") for path in FRAGMENTS), encoding="utf-8")
    commits = git("rev-list", "--reverse", "base..HEAD").split()
    try:
        for number, commit in enumerate(commits, 1):
            subject = git("show", "-s", "--format=%s", commit).strip()
            build(commit, number, f"{number} of {len(commits)}: {subject}")
    except BuildError as error:
        print(f"[{NAME}] {error}", file=sys.stderr)
        return 1
    return subprocess.run([ROOT / "scripts" / "kernel_config.py", TREE / ".config",
                           OUTPUT / "fragments.config"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
