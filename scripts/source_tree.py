#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps an upstream source as a git tree under build/, with our series and overlay in it.

    source_tree.py tree      make or update the tree from the repository
    source_tree.py refresh   write what was edited in the tree back to the repository
    source_tree.py status    say what the tree has that the repository lacks; exit 3 if anything
    source_tree.py stock     check out upstream with only the leading "build:" patches beside it

`--project` says which: qemu (qemu/patches, qemu/overlay, build/qemu; the default) or linux
(linux-patches, build/linux).

The tree is a git checkout. Its tag `base` is upstream as unpacked; each patch of the series is
one commit above it. Overlay files (new files of ours) are plain files at their upstream path,
listed in .git/info/exclude and in no commit. So one edits existing files and commits them, edits
overlay files in place, and `refresh` puts each where it belongs: a file that a commit adds, or
an untracked file, becomes an overlay file. Linux has no overlay: there a patch carries the files
it adds, and `refresh` wants everything committed.

What was last agreed between repository and tree is kept in .git/kintsugi.json. Each side is
compared with that, as in a three-way merge: what changed on one side only is carried over, what
changed on both is refused with a message, and nothing else is touched, so modification times
stay and a build repeats little.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME, EMAIL = "Kintsugi developers", "kintsugi@localhost.invalid"
BASE_SECONDS = 1735689600
BASE_DATE = f"{BASE_SECONDS} +0000"
UNPACKERS = {".xz": ["xz", "-dc"], ".gz": ["gzip", "-dc"], ".bz2": ["bzip2", "-dc"]}
JUNK = ["*.orig", "*.rej", "*~", "*.swp", ".*.swp", "*.o", "*.pyc", "__pycache__/", "*.patch",
        "/build/", "tags", "TAGS", "cscope.*", ".cache/", "compile_commands.json"]


class TreeError(Exception):
    """Something the user can mend; the message says how."""


# --- What trees are kept of ------------------------------------------------------------------


def qemu_version(read):
    return (read("VERSION") or "unknown").strip()


def linux_version(read):
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) *= *(\d+)", read("Makefile") or "",
                            re.M))
    return ".".join(found.get(key, "?") for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


@dataclasses.dataclass(frozen=True)
class Project:
    """An upstream, and where the repository keeps what is ours of it."""

    name: str                # as in `make NAME-tree`, build/NAME and the command of debian_fetch.py
    title: str
    variable: str            # of the environment: a tarball to use instead of Debian's
    series: str              # the versions that will do
    version: Callable        # of a tree, from a function that reads a file of it (or gives None)
    repo: str
    patches: str             # below repo
    overlay: str | None      # below repo; None: patches carry new files


PROJECTS = {project.name: project for project in (
    Project("qemu", "QEMU", "QEMU_TARBALL", "10.0", qemu_version, "qemu", "patches", "overlay"),
    Project("linux", "Linux", "LINUX_TARBALL", "6.12", linux_version, "linux-patches", ".", None),
)}


def say(text):
    print(f"[{say.project}-tree] {text}", flush=True)


say.project = "qemu"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def git_environment():
    """No configuration or identity of the user gets into the commits we make."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env.update(
        GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1", LC_ALL="C", TZ="UTC",
        GIT_AUTHOR_NAME=NAME, GIT_AUTHOR_EMAIL=EMAIL, GIT_AUTHOR_DATE=BASE_DATE,
        GIT_COMMITTER_NAME=NAME, GIT_COMMITTER_EMAIL=EMAIL, GIT_COMMITTER_DATE=BASE_DATE,
        GIT_CONFIG_COUNT="2",
        GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*",
        GIT_CONFIG_KEY_1="gc.auto", GIT_CONFIG_VALUE_1="0")
    return env


class Git:
    """Runs git in one work tree."""

    def __init__(self, directory):
        self.directory = directory

    def __call__(self, *args, stdin=None, env=None, check=True):
        full = git_environment()
        full.update(env or {})
        done = subprocess.run(["git", *args], cwd=self.directory, env=full, input=stdin,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if check and done.returncode != 0:
            raise TreeError(f"git {' '.join(args)} failed in {self.directory}:\n"
                            + done.stderr.decode(errors="replace").rstrip())
        self.returncode = done.returncode
        return done.stdout.decode(errors="surrogateescape")

    def lines(self, *args, **kwargs):
        """Output of a command called with -z, as a list."""
        return [item for item in self(*args, **kwargs).split("\0") if item]


# --- Upstream, unpacked once per tarball -----------------------------------------------------


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(base) / "kintsugi"
    path.mkdir(parents=True, exist_ok=True)
    return path


def find_tarball(project):
    done = subprocess.run([str(ROOT / "scripts" / "debian_fetch.py"), f"{project.name}-tarball"],
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise TreeError(f"no {project.title} source tarball")
    return pathlib.Path(done.stdout.strip())


def pack_is_whole(pack):
    """Whether a pack file is what its last 20 bytes, the SHA-1 of the rest, say."""
    digest = hashlib.sha1()
    left = pack.stat().st_size - digest.digest_size
    if left <= 0:
        return False
    with open(pack, "rb") as file:
        while left:
            block = file.read(min(left, 1 << 20))
            if not block:
                return False
            digest.update(block)
            left -= len(block)
        return file.read() == digest.digest()


def base_repository(project, tarball, digest):
    """A bare repository in the cache whose tag `base` is the content of `tarball`."""
    final = cache_dir() / f"base-{digest}.git"
    if final.is_dir():
        packs = list(final.glob("objects/pack/*.pack"))
        if packs and all(pack_is_whole(pack) for pack in packs):
            return final
        say(f"{final} is damaged: making it again")
        shutil.rmtree(final)
    temp = pathlib.Path(tempfile.mkdtemp(prefix="unpack-", dir=cache_dir()))
    try:
        git = Git(temp)
        git("init", "-q", "--bare", "-b", "kintsugi", ".")
        say(f"recording {tarball.name} as a git commit")
        import_tarball(project, tarball, temp)
        try:
            os.replace(temp, final)
        except OSError:
            if not final.is_dir():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return final


def import_tarball(project, tarball, repository):
    """Writes the tarball's files, without its first directory, as the commit tagged `base`.

    Straight from the archive into one pack, as unpacking and adding so many files is slow.
    """
    # Neither compressing hard nor looking for deltas pays for one tree.
    command = ["git", "-c", "core.compression=1", "-c", "pack.compression=1", "fast-import",
               "--quiet", "--depth=0", "--big-file-threshold=64m"]
    wanted = {"VERSION", "Makefile"}
    texts = {}
    unpack = UNPACKERS.get(tarball.suffix, ["cat"])
    with subprocess.Popen([*unpack, str(tarball)], stdout=subprocess.PIPE) as plain, \
            subprocess.Popen(command, cwd=repository, env=git_environment(),
                             stdin=subprocess.PIPE) as importer:
        try:
            write_fast_import(project, plain.stdout, importer.stdin, wanted, texts)
            importer.stdin.close()
        except (tarfile.TarError, EOFError) as error:
            importer.kill()
            raise TreeError(f"{tarball} does not unpack: {error}") from error
        except BaseException:
            importer.kill()
            plain.kill()
            raise
        plain.stdout.read()
        if plain.wait() != 0:
            raise TreeError(f"{tarball} does not unpack")
        if importer.wait() != 0:
            raise TreeError(f"git fast-import of {tarball} failed")


def write_fast_import(project, archive, out, wanted, texts):
    """The stream for git fast-import; `texts` gets the content of the `wanted` files."""
    seen = {}   # path: (mode, mark), for hard links
    mark = 0
    with tarfile.open(fileobj=archive, mode="r|", errorlevel=2) as tar:
        for member in tar:
            path = member.name.lstrip("./").partition("/")[2].encode(errors="surrogateescape")
            if not path or path.split(b"/")[-1] == b".git":
                continue
            if member.islnk():
                target = member.linkname.lstrip("./").partition("/")[2]
                seen[path] = seen[target.encode(errors="surrogateescape")]
                continue
            if member.issym():
                mode, data = b"120000", member.linkname.encode(errors="surrogateescape")
            elif member.isfile():
                mode = b"100755" if member.mode & 0o100 else b"100644"
                data = tar.extractfile(member).read()
            else:
                continue
            name = path.decode(errors="surrogateescape")
            if name in wanted:
                texts[name] = data.decode(errors="replace")
            mark += 1
            seen[path] = (mode, mark)
            out.write(b"blob\nmark :%d\ndata %d\n" % (mark, len(data)))
            out.write(data)
            out.write(b"\n")
    version = project.version(texts.get)
    if not re.match(re.escape(project.series) + r"(\.|$)", version):
        raise TreeError(f"this is {project.title} {version}; this fork needs "
                        f"{project.series}.x")
    message = f"{project.title} {version}\n".encode()
    who = f"{NAME} <{EMAIL}> {BASE_SECONDS} +0000".encode()
    out.write(b"commit refs/heads/kintsugi\nauthor %s\ncommitter %s\ndata %d\n%s"
              % (who, who, len(message), message))
    for path, (mode, number) in seen.items():
        quoted = path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
        out.write(b'M %s :%d "%s"\n' % (mode, number, quoted))
    out.write(b"\nreset refs/tags/base\nfrom refs/heads/kintsugi\n\n")


# --- The series and the overlay in the repository --------------------------------------------


def read_series(patches):
    """[(comment lines before it, file name)], comment lines after the last."""
    entries, comments = [], []
    path = patches / "series"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            comments.append(line)
        else:
            entries.append((comments, line.strip()))
            comments = []
    return entries, comments


def series_hash(patches, names):
    digest = hashlib.sha256()
    for name in names:
        path = patches / name
        if not path.is_file():
            raise TreeError(f"{patches}/series names {name}, which does not exist")
        digest.update(f"{name}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def overlay_files(directory):
    """{relative path: sha256} of all files below `directory`."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = pathlib.Path(folder) / name
            found[str(path.relative_to(directory))] = sha256(path)
    return found


def unnumbered(name):
    return re.sub(r"^\d+-", "", name)


def copy_content(source, target):
    """Copies content and mode by rename; the target's time becomes now, so ninja sees it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, temp)
    shutil.copymode(source, temp)
    os.replace(temp, target)


def remove_empty_parents(path, stop):
    for parent in path.parents:
        if parent == stop or any(parent.iterdir()):
            break
        parent.rmdir()


# --- The tree --------------------------------------------------------------------------------


class SourceTree:
    """One tree and the part of the repository it is made from."""

    def __init__(self, project, repo, tree):
        self.project = project
        self.make = f"make {project.name}"   # the start of our targets' names
        self.patches = (repo / project.patches).resolve()
        self.overlay = repo / project.overlay if project.overlay else None
        self.tree = tree
        self.git = Git(tree)
        self.state_path = tree / ".git" / "kintsugi.json"
        self.state = {}

    # State

    def load(self):
        self.state = json.loads(self.state_path.read_text(encoding="utf-8"))

    def save(self):
        temp = self.state_path.with_suffix(".new")
        temp.write_text(json.dumps(self.state, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temp, self.state_path)

    def head(self):
        return self.git("rev-parse", "HEAD").strip()

    def tree_of(self, commit):
        return self.git("rev-parse", f"{commit}^{{tree}}").strip()

    def dirty(self):
        """Tracked files with changes that are in no commit."""
        return self.git.lines("diff", "--name-only", "-z", "HEAD")

    def untracked(self):
        return self.git.lines("ls-files", "-z", "--others", "--exclude-standard")

    def in_progress(self):
        return [name for name in ("rebase-merge", "rebase-apply", "CHERRY_PICK_HEAD",
                                  "MERGE_HEAD") if (self.tree / ".git" / name).exists()]

    def overlay_in_tree(self):
        """{path: sha256} of the recorded overlay files that exist in the tree."""
        return {path: sha256(self.tree / path) for path in self.state["overlay"]
                if (self.tree / path).is_file()}

    def write_exclude(self):
        lines = ["# Written by scripts/source_tree.py: editors' junk and the overlay."]
        lines += JUNK + [f"/{path}" for path in sorted(self.state["overlay"])]
        path = self.tree / ".git" / "info" / "exclude"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    # Applying

    def apply_series(self, names):
        """Makes one commit per patch above `base`, in the object store only; returns the last."""
        parent = self.git("rev-parse", "base^{commit}").strip()
        with tempfile.TemporaryDirectory(prefix="kintsugi-") as temp:
            index = {"GIT_INDEX_FILE": f"{temp}/index"}
            self.git("read-tree", parent, env=index)
            for name in names:
                info = self.git("mailinfo", "-b", "--encoding=UTF-8", f"{temp}/msg",
                                f"{temp}/diff", stdin=(self.patches / name).read_bytes())
                fields = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
                if not {"Author", "Email", "Subject", "Date"} <= set(fields):
                    raise TreeError(f"{self.patches / name} is not a git format-patch file")
                self.git("apply", "--cached", "--whitespace=nowarn", f"{temp}/diff", env=index,
                         check=False)   # all of it or nothing
                if self.git.returncode != 0:
                    raise TreeError(
                        f"{name} does not apply with zero fuzz to {self.project.title} "
                        f"{self.base_version()}:\n" + self.why_not(f"{temp}/diff", index))
                added = self.git.lines(
                    "diff-index", "--cached", "-z", "--name-only", "--diff-filter=A", parent,
                    env=index) if self.overlay else []
                if added:
                    raise TreeError(f"{name} adds {', '.join(added)}: new files belong in "
                                    f"{self.overlay}")
                body = pathlib.Path(f"{temp}/msg").read_text(encoding="utf-8").strip("\n")
                message = fields["Subject"] + ("\n\n" + body if body else "") + "\n"
                tree = self.git("write-tree", env=index).strip()
                author = {"GIT_AUTHOR_NAME": fields["Author"],
                          "GIT_AUTHOR_EMAIL": fields["Email"],
                          "GIT_AUTHOR_DATE": fields["Date"],
                          "GIT_COMMITTER_DATE": fields["Date"]}
                parent = self.git("commit-tree", tree, "-p", parent, "-F", "-",
                                  stdin=message.encode(), env=author).strip()
        return parent

    def why_not(self, diff, index):
        env = git_environment()
        env.update(index)
        done = subprocess.run(["git", "apply", "--cached", "--check", diff], cwd=self.tree,
                              env=env, stderr=subprocess.PIPE, text=True, check=False)
        return done.stderr.rstrip()

    def base_version(self):
        return self.project.version(lambda path: self.git("show", f"base:{path}", check=False))

    def create(self, tarball, digest):
        base = base_repository(self.project, tarball, digest)
        say(f"checking it out to {self.tree}")
        temp = self.tree.with_name(f".{self.tree.name}.new")
        shutil.rmtree(temp, ignore_errors=True)
        temp.parent.mkdir(parents=True, exist_ok=True)
        Git(temp.parent)("clone", "-q", "--no-checkout", str(base), str(temp))
        self.tree, final = temp, self.tree
        self.git = Git(temp)
        for key, value in (("user.name", NAME), ("user.email", EMAIL), ("gc.auto", "0"),
                           ("core.safecrlf", "false")):
            self.git("config", key, value)
        self.git("remote", "remove", "origin")
        entries, _ = read_series(self.patches)
        names = [name for _, name in entries]
        head = self.apply_series(names)
        self.git("checkout", "-q", "-B", "kintsugi", head)
        self.state = {"tarball": digest, "series": series_hash(self.patches, names),
                      "head": head, "overlay": {}}
        self.state_path = temp / ".git" / "kintsugi.json"
        self.save()
        self.tree = final
        self.git = Git(final)
        self.state_path = final / ".git" / "kintsugi.json"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temp, final)

    # The commands

    def update(self, force=False):
        """Carries the repository's changes to the tree."""
        if self.tree.exists() and not self.state_path.exists():
            say(f"{self.tree} is not a whole tree of ours: making it again")
            shutil.rmtree(self.tree)
        if not self.tree.exists():
            tarball = find_tarball(self.project)
            self.create(tarball, sha256(tarball))
        self.load()
        entries, _ = read_series(self.patches)
        names = [name for _, name in entries]
        digest = series_hash(self.patches, names)
        tarball_digest = self.state["tarball"]
        if os.environ.get(self.project.variable):
            tarball = find_tarball(self.project)
            tarball_digest = sha256(tarball)
        rebase = tarball_digest != self.state["tarball"]
        if digest != self.state["series"] or rebase or force:
            self.update_commits(names, digest, tarball_digest if rebase else None, force)
            self.state["tarball"] = tarball_digest
        changed = self.update_overlay(force)
        self.save()
        return changed

    def update_commits(self, names, digest, new_base, force):
        old_base = self.git("rev-parse", "base").strip()
        if new_base:
            base = base_repository(self.project, find_tarball(self.project), new_base)
            self.git("fetch", "-q", "--force", str(base), "refs/tags/base:refs/tags/base")
        try:
            new = self.apply_series(names)
            edited = self.dirty() or self.in_progress() or self.head() != self.state["head"]
            if edited and not force and self.tree_of(new) != self.tree_of("HEAD"):
                raise TreeError(
                    f"{self.patches} changed, but {self.tree} has edits that are not in it "
                    f"(see `git log base..` and `git status` there). Either `{self.make}-refresh` "
                    "first and merge the two with git, or throw the tree's edits away with "
                    f"`{self.make}-tree FORCE=1`")
        except TreeError:
            self.git("tag", "-f", "base", old_base)
            raise
        if force:
            for name in self.in_progress():
                path = self.tree / ".git" / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.git("checkout", "-q", "-f", "-B", "kintsugi", new)
        else:
            self.git("reset", "-q", "--keep", new)
        self.state["series"], self.state["head"] = digest, new
        say(f"{len(names)} patches applied to {self.project.title} {self.base_version()}")

    def update_overlay(self, force):
        """Three-way: repository, tree, and what they last agreed on."""
        if not self.overlay:
            self.write_exclude()
            return 0
        repo, agreed = overlay_files(self.overlay), {}
        recorded = self.state["overlay"] if self.overlay_in_tree() else {}  # {}: git clean -x
        upstream = set(self.git.lines("ls-tree", "-r", "-z", "--name-only", "base", "--",
                                      *repo)) if repo else set()
        if upstream:
            raise TreeError(f"overlay files exist upstream: {', '.join(sorted(upstream))}; "
                            "change them by a commit in the tree instead")
        conflicts, changed = [], 0
        for path in sorted(set(repo) | set(recorded)):
            target = self.tree / path
            ours, last = repo.get(path), recorded.get(path)
            theirs = sha256(target) if target.is_file() else None
            if ours == theirs:
                last = ours
            elif theirs == last or force:  # only the repository changed
                changed += 1
                last = ours
                if ours is not None:
                    copy_content(self.overlay / path, target)
                elif theirs is not None:
                    target.unlink()
                    remove_empty_parents(target, self.tree)
            elif ours != last:
                conflicts.append(path)
            # else only the tree changed: `refresh` will carry it over.
            if last is not None:
                agreed[path] = last
        if conflicts:
            raise TreeError(
                "changed both in the repository and in the tree, in different ways: "
                + ", ".join(conflicts) + f". Make {self.overlay} and {self.tree} agree, or take "
                f"the repository's with `{self.make}-tree FORCE=1`")
        self.state["overlay"] = agreed
        self.write_exclude()
        if changed:
            say(f"{changed} overlay files updated")
        return changed

    def edits(self):
        """Lines that say what the tree has and the repository lacks."""
        self.load()
        found = [f"uncommitted: {path}" for path in self.dirty()]
        found += [f"untracked: {path}" for path in self.untracked()]
        if self.in_progress():
            found.append("unfinished: " + ", ".join(self.in_progress()))
        if self.head() != self.state["head"]:
            found.append("commits that were not exported: see `git log base..`")
        tree = self.overlay_in_tree()
        for path, last in sorted(self.state["overlay"].items()):
            if path not in tree:
                found.append(f"overlay file deleted: {path}")
            elif tree[path] != last:
                found.append(f"overlay file edited: {path}")
        return found

    def refresh(self):
        """Carries the tree's changes to the repository."""
        if not self.state_path.exists():
            raise TreeError(f"{self.tree} does not exist yet: `{self.make}-tree`")
        self.load()
        if self.in_progress():
            raise TreeError(f"finish or abort what is going on in {self.tree}: "
                            + ", ".join(self.in_progress()))
        if self.dirty():
            raise TreeError(f"commit or drop these changes in {self.tree} first (`git commit "
                            "--fixup` and `git rebase -i --autosquash base` help): "
                            + ", ".join(self.dirty()))
        entries, trailer = read_series(self.patches)
        names = [name for _, name in entries]
        repo_changed = series_hash(self.patches, names) != self.state["series"]
        tree_changed = self.head() != self.state["head"]
        if repo_changed and tree_changed:
            raise TreeError(f"both {self.patches} and the commits in {self.tree} changed since "
                            "they last agreed: merge them with git")
        added = []
        if self.overlay:
            added = self.git.lines("diff", "-z", "--name-only", "--no-renames",
                                   "--diff-filter=A", "base", "HEAD")
            self.refresh_overlay(added)
        elif self.untracked():
            raise TreeError(f"commit or remove these new files in {self.tree} first: "
                            + ", ".join(self.untracked()))
        if not repo_changed:
            self.export(entries, trailer, added)
        self.save()
        self.update()
        if self.edits():
            raise TreeError("still different after the refresh:\n  " + "\n  ".join(self.edits()))

    def refresh_overlay(self, added):
        tree, recorded = self.overlay_in_tree(), self.state["overlay"]
        repo = overlay_files(self.overlay)
        if recorded and not tree:
            raise TreeError(f"no overlay file is left in {self.tree} (git clean -x?): "
                            f"`{self.make}-tree` puts them back")
        new = sorted(set(added) | set(self.untracked()))
        for path in new:
            tree[path] = sha256(self.tree / path)
        conflicts = [path for path in set(recorded) | set(new)
                     if tree.get(path) != recorded.get(path)
                     and repo.get(path) not in (recorded.get(path), tree.get(path))]
        if conflicts:
            raise TreeError("changed both in the repository and in the tree: "
                            + ", ".join(sorted(conflicts)) + "; make them agree first")
        for path in sorted(set(recorded) | set(new)):
            if tree.get(path) == recorded.get(path) or tree.get(path) == repo.get(path):
                continue
            target = self.overlay / path
            if path not in tree:
                say(f"deleted: {target}")
                target.unlink()
                remove_empty_parents(target, self.overlay)
            else:
                say(f"{'new' if path in new else 'edited'}: {target}")
                copy_content(self.tree / path, target)
        for path in set(recorded) - set(tree):
            del recorded[path]
        recorded.update(tree)
        self.write_exclude()

    def export(self, entries, trailer, added):
        """Writes the commits above base as patches, if that changes anything."""
        with tempfile.TemporaryDirectory(prefix="kintsugi-") as temp:
            spec = ["--", "."] + [f":(exclude,literal){path}" for path in added]
            self.git("-c", "diff.algorithm=myers", "format-patch", "-q", "-N", "--zero-commit",
                     "--no-signature", "--abbrev=12", "--no-renames", "-o", temp, "base..HEAD",
                     *spec)
            new = sorted(os.listdir(temp))
            comments = {}
            for lines, name in entries:
                comments.setdefault(unnumbered(name), lines)
            kept = {unnumbered(name) for name in new}
            text, carried = [], []
            if not entries:   # the comments of an empty series are its head
                carried, trailer = trailer, []
            order = [unnumbered(name) for _, name in entries]
            for name in new:
                # A section's comment goes on to the next patch when its own one is gone.
                while order and order[0] != unnumbered(name) and order[0] not in kept:
                    carried += comments.pop(order.pop(0), [])
                if order and order[0] == unnumbered(name):
                    order.pop(0)
                text += carried + comments.pop(unnumbered(name), []) + [name]
                carried = []
            text += carried + trailer
            self.patches.mkdir(parents=True, exist_ok=True)
            for name in new:
                target = self.patches / name
                if not target.exists() or sha256(target) != sha256(f"{temp}/{name}"):
                    say(f"written: {target}")
                    shutil.copyfile(f"{temp}/{name}", target)
        for path in self.patches.glob("*.patch"):
            if path.name not in new:
                say(f"deleted: {path}")
                path.unlink()
        series = self.patches / "series"
        content = "".join(f"{line}\n" for line in text)
        if not series.exists() or series.read_text(encoding="utf-8") != content:
            series.write_text(content, encoding="utf-8")
        # The commits may still add files; update() makes them again from what was exported.
        if added:
            kept_aside = {path: (self.tree / path).read_bytes() for path in added}
            head = self.apply_series(new)
            self.git("reset", "-q", "--keep", head)
            for path in added:
                target = self.tree / path
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(kept_aside[path])
                    shutil.copymode(self.overlay / path, target)
        else:
            head = self.apply_series(new)
            if self.tree_of(head) != self.tree_of("HEAD"):
                raise TreeError("the exported series does not give the tree back")
            self.git("reset", "-q", "--soft", head)
        self.state["series"] = series_hash(self.patches, new)
        self.state["head"] = head

    def stock(self, target):
        """A second work tree: upstream and the leading patches named "build:", to compare with."""
        self.update()
        commit = "base"
        for line in self.git("log", "--reverse", "--format=%H %s", "base..HEAD").splitlines():
            digest, subject = line.split(" ", 1)
            if not subject.startswith("build:"):
                break
            commit = digest
        commit = self.git("rev-parse", f"{commit}^{{commit}}").strip()
        git = Git(target)
        if target.is_dir():
            current = git("rev-parse", "HEAD", check=False).strip()
            if git.returncode == 0 and current == commit:
                return
            if git.returncode == 0:
                git("checkout", "-q", "-f", "--detach", commit)
                return
            shutil.rmtree(target)
        say(f"checking out unpatched {self.project.title} {self.base_version()} to {target}")
        self.git("worktree", "prune")
        self.git("worktree", "add", "-q", "--detach", str(target), commit)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("tree", "refresh", "status", "stock"))
    parser.add_argument("--project", choices=PROJECTS, default="qemu")
    parser.add_argument("--repo", type=pathlib.Path,
                        help="the project's directory in the repository (default: its own)")
    parser.add_argument("--tree", type=pathlib.Path, help="the git tree (default: build/PROJECT)")
    parser.add_argument("--force", action="store_true", help="throw away edits in the tree")
    args = parser.parse_args()
    project = PROJECTS[args.project]
    say.project = project.name
    tree = SourceTree(project, (args.repo or ROOT / project.repo).resolve(),
                      (args.tree or ROOT / "build" / project.name).resolve())
    tree.tree.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(tree.tree.with_name(f".{tree.tree.name}.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if args.command == "tree":
                tree.update(args.force)
            elif args.command == "refresh":
                tree.refresh()
            elif args.command == "stock":
                tree.stock(tree.tree.with_name(f"{tree.tree.name}-stock"))
            else:
                if not tree.state_path.exists():
                    raise TreeError(f"{tree.tree} does not exist yet: `{tree.make}-tree`")
                edits = tree.edits()
                print("\n".join(edits) if edits else "the tree is as the repository says")
                return 3 if edits else 0
    except TreeError as error:
        print(f"[{project.name}-tree] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
