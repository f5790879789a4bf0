#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the linters: clang-format, clang-tidy, QEMU's and Linux's checkpatch, shellcheck, Python's
compiler.

    lint.py             all of them; one result each goes to build/results/lint.txt
    lint.py --format    lay out the C++ instead

clang-tidy is slow, so a source that passed is remembered in ${XDG_CACHE_HOME:-~/.cache}/kintsugi
by the hash of what can change the outcome: the source, the headers of ours that it includes,
.clang-tidy and the program's version.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "qemu"
LINUX_TREE = ROOT / "build" / "linux"
COMPILE_COMMANDS = ROOT / "build" / "cmake" / "compile_commands.json"
CXX_DIRECTORIES = ("lib", "memserver", "tools", "tests/unit", "tests/fuzz", "tests/bench")
CXX_SUFFIXES = (".cc", ".h")
JOBS = int(os.environ.get("JOBS") or os.cpu_count() or 1)
# Versions of clang-format and clang-tidy disagree: Debian 12's is binding, others only remark.
LLVM_VERSION = 14
INCLUDE_RE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.M)
INCLUDE_FLAG_RE = re.compile(r"-I(/\S+)")


def files(*suffixes, under):
    found = []
    for directory in under:
        for path in sorted((ROOT / directory).rglob("*")):
            if path.suffix in suffixes and path.is_file():
                found.append(path)
    return found


def run(command, cwd=ROOT):
    done = subprocess.run([str(item) for item in command], cwd=cwd, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout


def cxx_files():
    # kintsugi.h is read by QEMU's C as well, but it is laid out as the rest of lib/.
    return files(*CXX_SUFFIXES, under=CXX_DIRECTORIES)


def llvm_tool(name):
    """(program, its version): of the binding version if it is there."""
    binding = f"{name}-{LLVM_VERSION}"
    program = binding if shutil.which(binding) else name
    match = re.search(r"version (\d+)", run([program, "--version"])[1])
    return program, int(match[1]) if match else None


def judged(name, version, code, output):
    """The outcome, but findings of another version than the binding one are only kept."""
    if code == 0 or version == LLVM_VERSION:
        return code, output
    log = ROOT / "build" / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(output, encoding="utf-8")
    return None, (f"version {version} has findings, see {log.relative_to(ROOT)}, "
                  f"but only version {LLVM_VERSION} is binding")


def clang_format():
    program, version = llvm_tool("clang-format")
    code, output = run([program, "--dry-run", "-Werror", *cxx_files()])
    return judged("clang-format", version, code, output)


# --- clang-tidy ------------------------------------------------------------------------------


def with_headers(source, directories):
    """The source and all that it includes, by way of others too, from these directories."""
    found, todo = {source}, [source]
    while todo:
        path = todo.pop()
        for name in INCLUDE_RE.findall(path.read_text(encoding="utf-8")):
            for directory in (path.parent, *directories):
                header = directory / name
                if header.is_file():
                    if header not in found:
                        found.add(header)
                        todo.append(header)
                    break
    return sorted(found)


def tidy_key(entry, common):
    directories = [pathlib.Path(name) for name in INCLUDE_FLAG_RE.findall(entry["command"])]
    digest = hashlib.sha256(common)
    for path in with_headers(pathlib.Path(entry["file"]), directories):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tidy_one(program, entry, marker):
    # Debian's headers bring in warnings of their own; only what .clang-tidy names counts.
    code, output = run([program, "--quiet", "-p", COMPILE_COMMANDS.parent, entry["file"]])
    if code == 0:
        marker.touch()
    return code, output


def clang_tidy():
    if not COMPILE_COMMANDS.exists():
        return 1, f"{COMPILE_COMMANDS} does not exist: make lib\n"
    wanted = {str(path) for path in files(".cc", under=("lib", "memserver", "tools"))}
    entries = [entry for entry in json.loads(COMPILE_COMMANDS.read_text(encoding="utf-8"))
               if entry["file"] in wanted]
    program, version = llvm_tool("clang-tidy")
    common = hashlib.sha256()
    common.update((ROOT / ".clang-tidy").read_bytes())
    common.update(run([program, "--version"])[1].encode())
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    passed = pathlib.Path(base) / "kintsugi" / "clang-tidy"
    passed.mkdir(parents=True, exist_ok=True)
    todo = []
    for entry in entries:
        marker = passed / tidy_key(entry, common.digest())
        if not marker.exists():
            todo.append((entry, marker))
    status, text, start = 0, "", time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        waiting = [pool.submit(tidy_one, program, *item) for item in todo]
        for number, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            code, output = future.result()
            print(f"[lint] clang-tidy {number} of {len(todo)}, "
                  f"{time.monotonic() - start:.0f} s", flush=True)
            if code:
                status = 1
                text += output
    return judged("clang-tidy", version, status, text)


# --- The rest --------------------------------------------------------------------------------


def checkpatch_overlay():
    overlay = ROOT / "qemu" / "overlay"
    sources = [path for path in files(".c", ".h", ".inc", under=("qemu/overlay",))]
    if not sources:
        return None, f"no C under {overlay.relative_to(ROOT)}"
    return run(["perl", "scripts/checkpatch.pl", "--terse", "--no-signoff", "--no-summary", "-f",
                *sources], cwd=TREE)


def checkpatch_patches():
    patches = sorted((ROOT / "qemu" / "patches").glob("*.patch"))
    if not patches:
        return None, "no patches"
    return run(["perl", "scripts/checkpatch.pl", "--terse", "--no-signoff", "--no-summary",
                "--patch", *patches], cwd=TREE)


def checkpatch_linux():
    patches = sorted((ROOT / "linux-patches").glob("*.patch"))
    if not patches:
        return None, "no patches"
    # MAINTAINERS is upstream's to change; the base is a tarball, which has no commits to look up.
    return run(["perl", "scripts/checkpatch.pl", "--strict", "--terse", "--no-signoff",
                "--no-summary", "--ignore", "FILE_PATH_CHANGES,UNKNOWN_COMMIT_ID",
                "--patch", *patches],
               cwd=LINUX_TREE)


def shell_scripts():
    found = []
    for directory in ("scripts", ".ci", "tests"):
        for path in sorted((ROOT / directory).rglob("*")):
            if not path.is_file() or path.stat().st_size > 1 << 20:
                continue
            with open(path, "rb") as file:
                first = file.readline(80)
            if path.suffix == ".sh" or first.startswith((b"#!/bin/sh", b"#!/bin/bash")):
                found.append(path)
    return found


def shellcheck():
    if not shutil.which("shellcheck"):
        return None, "shellcheck is not installed"
    return run(["shellcheck", "--severity=warning", "-x", *shell_scripts()])


def python_compiles():
    status, text = 0, ""
    for path in files(".py", under=("scripts", "tests")):
        try:
            compile(path.read_bytes(), str(path), "exec")
        except SyntaxError as error:
            status = 1
            text += f"{path}:{error.lineno}: {error.msg}\n"
    return status, text


CHECKS = [("clang-format", clang_format), ("clang-tidy", clang_tidy),
          ("checkpatch: overlay", checkpatch_overlay), ("checkpatch: patches", checkpatch_patches),
          ("checkpatch: Linux", checkpatch_linux), ("shellcheck", shellcheck),
          ("python", python_compiles)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", action="store_true", help="lay out the C++")
    if parser.parse_args().format:
        program, version = llvm_tool("clang-format")
        if version != LLVM_VERSION:
            print(f"[format] warning: clang-format {version} differs in places from version "
                  f"{LLVM_VERSION}, which is binding: check the changes")
        code, output = run([program, "-i", *cxx_files()])
        sys.stdout.write(output)
        return code
    results = ROOT / "build" / "results" / "lint.txt"
    results.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with open(results, "w", encoding="utf-8") as out:
        for name, check in CHECKS:
            code, output = check()
            if code is None:
                out.write(f"skip {name}: {output}\n")
                print(f"[lint] {name}: skipped, {output}")
            elif code:
                failed += 1
                out.write(f"fail {name}\n")
                print(output.rstrip())
                print(f"[lint] {name}: failed", flush=True)
            else:
                out.write(f"pass {name}\n")
                print(f"[lint] {name}: passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
