#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches from Debian what the build needs beyond the machine's own release.

    debian_fetch.py qemu-tarball    prints the path of a QEMU 10.0.x source tarball
    debian_fetch.py linux-tarball   prints the path of a Linux 6.12.x source tarball
    debian_fetch.py meson DIR       unpacks a meson that QEMU accepts under DIR

Nothing is written under /etc and no host is named here: the mirror and its key are those that
the machine's own sources.list names for its Debian release, put into a private apt configuration
together with the suite that is wanted. Works without root.

Downloads are kept in ${XDG_CACHE_HOME:-~/.cache}/kintsugi under names that hold the SHA-256 of
their content, so a file is used only when it is whole.
"""

import argparse
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

QEMU_SUITE = "trixie"
QEMU_TARBALL_RE = re.compile(r"qemu_(10\.0(?:\.\d+)*)(?:\+[a-z0-9.]+)?\.orig\.tar\.xz$")
LINUX_PACKAGE = "linux-source-6.12"
LINUX_TARBALL = f"usr/src/{LINUX_PACKAGE}.tar.xz"  # in that package
MESON_AT_LEAST = (1, 5)
ATTEMPTS_MAX = 3

# Suites other than the codename that stand for a whole Debian release.
SUITE_ALIASES = {"stable", "oldstable", "oldoldstable", "testing"}


class FetchError(Exception):
    """Something a user can mend; the message says how."""


def say(text):
    print(f"[fetch] {text}", file=sys.stderr, flush=True)


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(base) / "kintsugi"
    path.mkdir(parents=True, exist_ok=True)
    return path


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- The machine's own mirror settings -------------------------------------------------------


def parse_deb822(text):
    """Yields (types, uris, suites, components, options) for each stanza of a .sources file."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields, name = {}, None
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t":
                if name:
                    fields[name] += "\n" + line
                continue
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
        if not fields.get("uris") or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        options = {key: value for key, value in fields.items()
                   if key not in ("types", "uris", "suites", "components")}
        yield (fields.get("types", "").split(), fields["uris"].split(),
               fields.get("suites", "").split(), fields.get("components", "").split(), options)


def parse_one_line(text):
    """The same for a sources.list file."""
    pattern = re.compile(r"\s*(deb|deb-src)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)$")
    for line in text.splitlines():
        match = pattern.match(line.split("#", 1)[0])
        if not match:
            continue
        kind, raw, uri, suite, components = match.groups()
        options = {}
        for item in (raw or "").split():
            key, _, value = item.partition("=")
            options[key.lower()] = value.replace(",", " ")
        yield [kind], [uri], [suite], components.split(), options


def apt_sources(etc):
    """All entries of sources.list and sources.list.d below `etc`."""
    files = [etc / "sources.list"]
    files += sorted((etc / "sources.list.d").glob("*.list"))
    files += sorted((etc / "sources.list.d").glob("*.sources"))
    for path in files:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        yield from (parse_deb822 if path.suffix == ".sources" else parse_one_line)(text)


def origins():
    """{uri: origin} as apt knows it from the Release files it has; may be empty."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    known = {}
    for line in done.stdout.splitlines():
        uri, _, origin = line.partition(" ")
        if origin and not origin.startswith("$("):
            known[uri.rstrip("/")] = origin
    return known


def os_release(path="/etc/os-release"):
    values = {}
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        values[key] = value.strip().strip('"')
    return values


def main_archive(etc, codename, known_origins):
    """(uri, options) of the main Debian archive: not security, not updates, not third parties."""
    return archive(etc, codename, known_origins, {codename} | SUITE_ALIASES)


def security_archive(etc, codename, known_origins):
    """(uri, options) of the archive of Debian's security updates."""
    return archive(etc, f"{codename}-security", known_origins,
                   {f"{name}-security" for name in {codename} | SUITE_ALIASES})


def archive(etc, codename, known_origins, wanted):
    """(uri, options) of the Debian archive that some entry uses for one of the suites `wanted`."""
    best = None
    for types, uris, suites, components, options in apt_sources(etc):
        if "main" not in components or not {"deb", "deb-src"} & set(types):
            continue
        if not wanted & set(suites):
            continue
        for uri in uris:
            origin = known_origins.get(uri.rstrip("/"))
            if origin not in (None, "Debian"):
                continue
            score = (origin == "Debian") + 2 * ("debian-archive" in options.get("signed-by", ""))
            if best is None or score > best[0]:
                best = (score, uri, options)
    if best is None:
        raise FetchError(
            f"no entry for Debian {codename} main in {etc}/sources.list or sources.list.d; "
            "add one, or set QEMU_TARBALL= and LINUX_TARBALL= to source tarballs of QEMU 10.0 and "
            "Linux 6.12")
    return best[1], best[2]


# --- A private apt ---------------------------------------------------------------------------


class PrivateApt:
    """apt-get with one source of its own and all state under `root`."""

    def __init__(self, root, kind, suite):
        self.root = root
        etc = pathlib.Path(os.environ.get("KINTSUGI_APT_ETC", "/etc/apt"))
        codename = os_release().get("VERSION_CODENAME", "")
        find = security_archive if suite.endswith("-security") else main_archive
        uri, options = find(etc, codename, origins())
        say(f"using {uri} (from this machine's apt settings), suite {suite}")
        for name in ("lists/partial", "cache/archives/partial", "parts", "empty"):
            (root / name).mkdir(parents=True, exist_ok=True)
        lines = [f"Types: {kind}", f"URIs: {uri}", f"Suites: {suite}", "Components: main"]
        for key in ("signed-by", "trusted", "check-valid-until"):
            if options.get(key):
                lines.append(f"{key.title()}: {options[key]}")
        (root / "parts" / "kintsugi.sources").write_text("\n".join(lines) + "\n",
                                                         encoding="utf-8")
        settings = {
            "Dir::Etc::sourcelist": root / "empty" / "none",
            "Dir::Etc::sourceparts": root / "parts",
            "Dir::Etc::preferences": root / "empty" / "none",
            "Dir::Etc::preferencesparts": root / "empty",
            "Dir::State::lists": root / "lists",
            "Dir::Cache": root / "cache",
            "Dir::Cache::archives": root / "cache" / "archives",
            "APT::Sandbox::User": "root",
            "APT::Update::Post-Invoke::": "true",
            "Acquire::Retries": "3",
            "Acquire::Languages": "none",
        }
        self.command = ["apt-get", "-q"]
        for key, value in settings.items():
            self.command += ["-o", f"{key}={value}"]

    def run(self, *args):
        """Runs apt-get in self.root, several times if it must."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            done = subprocess.run(self.command + list(args), cwd=self.root, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode == 0:
                return
            if attempt < ATTEMPTS_MAX:
                say(f"apt-get {args[0]} failed (attempt {attempt} of {ATTEMPTS_MAX}), again")
                time.sleep(5)
        sys.stderr.write(done.stdout)
        raise FetchError(f"apt-get {' '.join(args)} failed; its output is above")


# --- What is fetched -------------------------------------------------------------------------


def version_key(version):
    return [int(part) for part in version.split(".")]


def cached_tarball(cache, name="qemu", series=r"10\.0"):
    """The newest whole tarball of that name in the cache, or None; broken ones are removed."""
    found = []
    for path in cache.glob(f"{name}-*.tar.xz"):
        match = re.fullmatch(rf"{name}-({series}(?:\.\d+)*)-([0-9a-f]{{64}})\.tar\.xz", path.name)
        if match:
            found.append((version_key(match[1]), path, match[2]))
    for _, path, digest in sorted(found, reverse=True):
        if sha256(path) == digest:
            return path
        say(f"{path} is not what its name says: removing it")
        path.unlink(missing_ok=True)
    return None


def given_tarball(variable):
    """The tarball that the user names in the environment, or None."""
    given = os.environ.get(variable)
    if not given:
        return None
    path = pathlib.Path(given).resolve()
    if not path.is_file():
        raise FetchError(f"{variable}={given}: no such file")
    return path


def qemu_tarball():
    cache = cache_dir()
    path = given_tarball("QEMU_TARBALL") or cached_tarball(cache)
    if path:
        return path
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as temp:
        apt = PrivateApt(pathlib.Path(temp), "deb-src", QEMU_SUITE)
        say("reading the archive's index")
        apt.run("update")
        say("downloading the QEMU source (about 40 MB)")
        apt.run("source", "--download-only", "--tar-only", "qemu")
        for got in sorted(apt.root.glob("qemu_*.orig.tar.xz")):
            match = QEMU_TARBALL_RE.search(got.name)
            if match:
                final = cache / f"qemu-{match[1]}-{sha256(got)}.tar.xz"
                os.replace(got, final)
                return final
        raise FetchError(f"suite {QEMU_SUITE} has no QEMU 10.0.x; set QEMU_TARBALL= to one")


def linux_tarball():
    """The tarball in Debian's linux-source package, of the machine's own release."""
    cache = cache_dir()
    path = given_tarball("LINUX_TARBALL") or cached_tarball(cache, "linux", r"6\.12")
    if path:
        return path
    codename = os_release().get("VERSION_CODENAME", "")
    for suite in (f"{codename}-security", codename):
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as temp:
            try:
                apt = PrivateApt(pathlib.Path(temp), "deb", suite)
                apt.run("update")
                say(f"downloading the Linux source from {suite} (about 150 MB)")
                apt.run("download", LINUX_PACKAGE)
            except FetchError as error:
                say(str(error))
                continue
            for deb in apt.root.glob(f"{LINUX_PACKAGE}_*.deb"):
                return unpack_linux_deb(deb, cache)
    raise FetchError(f"no suite has {LINUX_PACKAGE}; set LINUX_TARBALL= to a Linux 6.12.x tarball")


def unpack_linux_deb(deb, cache):
    """Puts the tarball in a linux-source package into the cache; returns its path."""
    match = re.match(rf"{LINUX_PACKAGE}_(6\.12(?:\.\d+)*)", deb.name)
    if not match:
        raise FetchError(f"{deb.name} is not of Linux 6.12")
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as temp:
        subprocess.run(["dpkg-deb", "-x", str(deb), temp], check=True)
        got = pathlib.Path(temp) / LINUX_TARBALL
        final = cache / f"linux-{match[1]}-{sha256(got)}.tar.xz"
        os.replace(got, final)
    return final


def unpacked_meson_ok(target):
    return bool(list(target.glob("usr/lib/python3/dist-packages/mesonbuild/mesonmain.py")))


def fetch_meson(target):
    target = pathlib.Path(target).resolve()
    if unpacked_meson_ok(target):
        return target
    cache = cache_dir()
    codename = os_release().get("VERSION_CODENAME", "")
    deb = None
    for path in cache.glob(f"meson-{codename}-*.deb"):
        if sha256(path) == path.stem.rsplit("-", 1)[1]:
            deb = path
        else:
            path.unlink(missing_ok=True)
    if deb is None:
        suite = f"{codename}-backports"
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as temp:
            apt = PrivateApt(pathlib.Path(temp), "deb", suite)
            say(f"downloading meson from {suite} (1 MB and an index)")
            apt.run("update")
            apt.run("download", "meson")
            for got in apt.root.glob("meson_*.deb"):
                match = re.match(r"meson_(\d+)\.(\d+)", got.name)
                if match and (int(match[1]), int(match[2])) >= MESON_AT_LEAST:
                    deb = cache / f"meson-{codename}-{sha256(got)}.deb"
                    os.replace(got, deb)
        if deb is None:
            raise FetchError(f"suite {suite} has no meson >= 1.5")
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = tempfile.mkdtemp(prefix="meson-", dir=target.parent)
    subprocess.run(["dpkg", "-x", str(deb), temp], check=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temp, target)
    os.chmod(target, 0o755)
    return target


# --- A root ------------------------------------------------------------------------------------


def short_hash(*parts):
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(b"%d " % len(data) + data)
    return digest.hexdigest()[:16]


def root_tarball(codename, packages=()):
    """A tarball of a minimal Debian root with these packages more, made once by debootstrap.

    Its sources.list names the mirror; apt's lists and packages are not kept. Needs root.
    """
    cache = cache_dir()
    path = cache / f"debian-root-{codename}-{short_hash(packages)}.tar"
    if path.exists():
        return path
    if shutil.which("debootstrap") is None:
        raise FetchError("debootstrap is missing; install the package debootstrap")
    etc = pathlib.Path(os.environ.get("KINTSUGI_APT_ETC", "/etc/apt"))
    uri, _ = main_archive(etc, os_release().get("VERSION_CODENAME", ""), origins())
    say(f"debootstrap {codename} from this machine's mirror (one to five minutes)")
    with tempfile.TemporaryDirectory(prefix="root-", dir=cache) as name:
        made, tar = pathlib.Path(name) / "made", pathlib.Path(name) / "root.tar"
        include = [f"--include={','.join(packages)}"] if packages else []
        for command in (["debootstrap", "--variant=minbase", *include, codename, made, uri],
                        ["rm", "-rf", made / "var/cache/apt", made / "var/lib/apt/lists"],
                        ["tar", "-C", made, "--one-file-system", "-cf", tar, "."]):
            done = subprocess.run([str(word) for word in command], text=True, errors="replace",
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode != 0:
                raise FetchError(f"{command[0]} failed:\n{done.stdout[-4000:]}")
        os.replace(tar, path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("qemu-tarball", help="print the path of a QEMU 10.0.x source tarball")
    commands.add_parser("linux-tarball", help="print the path of a Linux 6.12.x source tarball")
    meson = commands.add_parser("meson", help="unpack a meson that QEMU accepts")
    meson.add_argument("dir")
    args = parser.parse_args()
    try:
        if args.command == "qemu-tarball":
            print(qemu_tarball())
        elif args.command == "linux-tarball":
            print(linux_tarball())
        else:
            print(fetch_meson(args.dir))
    except FetchError as error:
        print(f"[fetch] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
