#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the repository that no other linter makes; each is one test.

    tidy.py [DIRECTORY]     check the repository at DIRECTORY (default: this one)

Results go to build/results/tidy.txt. What is found is printed as file:line: text.
"""

import os
import pathlib
import re
import subprocess
import sys

COLUMNS_MAX = 100
BLOB_BYTES_MAX = 512 * 1024
TEXT_PROBE_BYTES = 8192

# Joined here so that this file does not find itself.
MARKERS = re.compile(r"\b(" + "|".join(("FIX" + "ME", "X" * 3, "TO" + "DO")) + r")\b")
HOSTS = re.compile("|".join(re.escape(left + "." + right) for left, right in (
    ("deb.debian", "org"), ("security.debian", "org"), ("snapshot.debian", "org"),
    ("ftp.debian", "org"), ("pypi", "org"), ("pythonhosted", "org"), ("registry.npmjs", "org"),
    ("crates", "io"), ("proxy.golang", "org"), ("docker", "io"), ("ghcr", "io"),
    ("quay", "io"), ("archive.ubuntu", "com"), ("deb.nodesource", "com"))))
MACHINE_PATHS = re.compile(r"(?<![\w.$}/-])/" + "(work|root|home/[a-z]+|Users/[a-z]+)" + r"/\w")
SPDX = "SPDX-" + "License-Identifier:"

# Upstream's text, or data: no layout of ours.
FOREIGN = re.compile(r"^(qemu/patches/.*\.patch|linux-patches/.*\.patch|LICENSE|COPYING"
                     r"|tests/fuzz/corpus/.*)$")
SOURCE_SUFFIXES = {".c", ".cc", ".h", ".py", ".sh", ".cmake", ".build", ".inc", ".S", ".ld"}
SOURCE_NAMES = {"Makefile", "CMakeLists.txt", "meson.build", "Kconfig"}


class Repository:
    """The files of one checkout: what git tracks or would track."""

    def __init__(self, root):
        self.root = root
        self.files = self.list_files()
        self.texts = {}

    def list_files(self):
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
            cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            names = done.stdout.decode().split("\0")
        else:
            names = []
            for folder, folders, leaves in os.walk(self.root):
                folders[:] = [name for name in folders
                              if name not in ("build", ".git", "__pycache__")]
                names += [os.path.relpath(os.path.join(folder, leaf), self.root)
                          for leaf in leaves]
        return sorted(name for name in set(names) if name and (self.root / name).is_file())

    def text(self, name):
        """Content of a text file, or None for a binary one."""
        if name not in self.texts:
            content = (self.root / name).read_bytes()
            binary = b"\0" in content[:TEXT_PROBE_BYTES]
            self.texts[name] = None if binary else content.decode("utf-8", errors="replace")
        return self.texts[name]

    def lines(self):
        """(file, line number, line) of every text of ours."""
        for name in self.files:
            if FOREIGN.match(name) or self.text(name) is None:
                continue
            for number, line in enumerate(self.text(name).splitlines(), 1):
                yield name, number, line


def long_lines(repo):
    """No line over 100 columns, but for tables and links in Markdown."""
    for name, number, line in repo.lines():
        if len(line) <= COLUMNS_MAX or name.endswith((".json", ".jsonl", ".svg", ".csv")):
            continue
        if name.endswith(".md") and (line.lstrip().startswith("|") or "](" in line
                                     or "://" in line):
            continue
        yield f"{name}:{number}: {len(line)} columns"


def stray_markers(repo):
    """No notes to oneself."""
    for name, number, line in repo.lines():
        match = MARKERS.search(line)
        # mktemp templates are runs of X, not notes.
        if match and "mktemp" not in line:
            yield f"{name}:{number}: {match[0]}"


def big_blobs(repo):
    """No file over 512 KiB."""
    for name in repo.files:
        size = (repo.root / name).stat().st_size
        if size > BLOB_BYTES_MAX:
            yield f"{name}: {size // 1024} KiB"


def added_lines(patch):
    return "\n".join(line[1:] for line in patch.splitlines()
                     if line.startswith("+") and not line.startswith("+++"))


def orphan_overlay(repo):
    """Every overlay file is named by a hook patch, or by an overlay file that is."""
    overlay = {name for name in repo.files if name.startswith("qemu/overlay/")}
    reached = "\n".join(added_lines(repo.text(name)) for name in repo.files
                        if re.match(r"qemu/patches/.*\.patch$", name))
    left = set(overlay)
    progress = True
    while progress:
        progress = False
        for name in sorted(left):
            relative = name[len("qemu/overlay/"):]
            leaf = relative.rsplit("/", 1)[-1]
            # A generic name counts with its directory only.
            generic = leaf in ("meson.build", "Kconfig", "trace.h", "trace-events")
            wanted = relative.rsplit("/", 2)[-2] if generic and "/" in relative else leaf
            if re.search(r"(?<![\w-])" + re.escape(wanted) + r"(?![\w-])", reached):
                reached += "\n" + (repo.text(name) or "")
                left.discard(name)
                progress = True
    for name in sorted(left):
        yield f"{name}: no patch in qemu/patches names it"


def series_listed(repo):
    """qemu/patches/series names each patch once, in order, and nothing else."""
    for directory in ("qemu/patches", "linux-patches"):
        present = {name.rsplit("/", 1)[1] for name in repo.files
                   if name.startswith(directory + "/") and name.endswith(".patch")}
        series = repo.root / directory / "series"
        if not present and not series.exists():
            continue
        text = series.read_text(encoding="utf-8") if series.exists() else ""
        listed = [line.strip() for line in text.splitlines()
                  if line.strip() and not line.startswith("#")]
        for name in sorted(present - set(listed)):
            yield f"{directory}/{name}: not in series"
        for name in sorted(set(listed) - present):
            yield f"{directory}/series: {name} does not exist"
        if listed != sorted(set(listed)):
            yield f"{directory}/series: out of order, or a patch twice"


def patch_headers(repo):
    """A patch says why it is not upstream, is signed off by nobody, and adds no file to QEMU."""
    for name in repo.files:
        if not re.match(r"(qemu/patches|linux-patches)/.*\.patch$", name):
            continue
        head, _, body = repo.text(name).partition("\n---\n")
        if not re.search(r"^Upstream: \S", head, re.M):
            yield f"{name}: no Upstream: line"
        if re.search(r"^Signed-off-by:", head, re.M):
            yield f"{name}: has a Signed-off-by"
        if not re.search(r"^Subject: \[PATCH\] (\S+: )+[A-Z]", head, re.M):
            yield f"{name}: the subject is not `area: Imperative summary`"
        if name.startswith("qemu/") and re.search(r"^new file mode", body, re.M):
            yield f"{name}: adds a file; new files belong in qemu/overlay"


def dead_links(repo):
    """Relative links in Markdown lead somewhere."""
    for name, number, line in repo.lines():
        if not name.endswith(".md"):
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            path, _, anchor = target.partition("#")
            linked = (repo.root / name).parent / path if path else repo.root / name
            if not linked.exists():
                yield f"{name}:{number}: {target} does not exist"
            elif anchor and linked.suffix == ".md" and anchor not in anchors(linked):
                yield f"{name}:{number}: {target} has no such heading"


def anchors(path):
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            found.add(heading.replace(" ", "-"))
    return found


def spdx_headers(repo):
    """Every source file names its licence in the first lines."""
    for name in repo.files:
        path = pathlib.PurePath(name)
        text = repo.text(name)
        if FOREIGN.match(name) or not text:
            continue
        source = path.suffix in SOURCE_SUFFIXES or path.name in SOURCE_NAMES
        if (source or text.startswith("#!")) and SPDX not in "\n".join(text.splitlines()[:30]):
            yield f"{name}: no {SPDX}"


def host_names(repo):
    """No registry or mirror host: the machine's own settings name them."""
    for name, number, line in repo.lines():
        match = HOSTS.search(line)
        if match:
            yield f"{name}:{number}: {match[0]}"


def machine_paths(repo):
    """No path of the machine that something was written on."""
    for name, number, line in repo.lines():
        match = MACHINE_PATHS.search(line)
        if match:
            yield f"{name}:{number}: {match[0]}"


CHECKS = [long_lines, stray_markers, big_blobs, orphan_overlay, series_listed, patch_headers,
          dead_links, spdx_headers, host_names, machine_paths]


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    root = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else here
    repo = Repository(root)
    results = []
    for check in CHECKS:
        findings = list(check(repo))
        for finding in findings:
            print(finding)
        name = check.__name__.replace("_", " ")
        results.append(f"fail {name}: {len(findings)} found" if findings else f"pass {name}")
        if findings:
            print(f"[tidy] {name}: {check.__doc__}")
    path = root / "build" / "results" / "tidy.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in results), encoding="utf-8")
    failed = sum(line.startswith("fail") for line in results)
    print(f"[tidy] {len(repo.files)} files, {len(CHECKS)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
