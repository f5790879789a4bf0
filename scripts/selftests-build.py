#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the kernel's selftests that tests/hosts/selftests.txt names, under build/selftests.

The programs are those of build/linux, with the headers that `make kernel` makes there, and go to
build/selftests/COLLECTION/PROGRAM. With --list, prints the table as it was understood.
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "build" / "linux" / "tools" / "testing" / "selftests"
OUTPUT = ROOT / "build" / "selftests"
sys.path.insert(0, str(ROOT / "tests" / "hosts"))

# pylint: disable=wrong-import-position
from emulated import selftests  # noqa: E402


def build(collection, programs):
    source, output = SOURCES / collection, OUTPUT / collection
    missing = [program for program in programs if not (source / f"{program}.c").exists()]
    if missing:
        print(f"[selftests] error: {source} has no {', '.join(missing)}", file=sys.stderr)
        return 1
    output.mkdir(parents=True, exist_ok=True)
    command = ["make", "-C", str(source), "-j", os.environ.get("JOBS") or str(os.cpu_count()),
               f"OUTPUT={output}", "CC=ccache gcc",
               f"KHDR_INCLUDES=-isystem {ROOT}/build/linux/usr/include",
               *(str(output / program) for program in programs)]
    env = {key: value for key, value in os.environ.items()
           if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    env.update(CCACHE_BASEDIR=str(ROOT), CCACHE_NOHASHDIR="1")
    log = ROOT / "build" / "logs" / f"selftests-{collection}.log"
    return subprocess.run([str(ROOT / "scripts" / "step.py"), "selftests", str(log),
                           f"building those of {collection}", "--", *command],
                          env=env, check=False).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the table and build nothing")
    args = parser.parse_args()
    try:
        rows = selftests.read_table()
    except selftests.TableError as error:
        print(f"[selftests] error: {error}", file=sys.stderr)
        return 1
    if args.list:
        for row in rows:
            print(row.name, ",".join(row.hosts), row.timeout_s, *row.arguments)
        return 0
    collections = {}
    for row in rows:
        collections.setdefault(row.collection, {})[row.program] = None
    return max((build(name, list(programs)) for name, programs in collections.items()), default=0)


if __name__ == "__main__":
    sys.exit(main())
