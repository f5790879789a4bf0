# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/debian_fetch.py: which mirror it takes from a machine's settings, and its cache."""

import subprocess

import debian_fetch
import pytest

DEB822 = """# comment
Types: deb
URIs: http://third.example/deb
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/third.gpg

Types: deb deb-src
# a comment inside
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""

ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main
deb https://cloud.example/apt cloud-sdk-bookworm main
deb https://node.example/node_20.x nodistro main
deb https://docker.example/linux/debian bookworm stable
deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
"""


def etc(tmp_path, **files):
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        name = name.replace("__", ".")
        path = tmp_path / name if name == "sources.list" else tmp_path / "sources.list.d" / name
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_deb822(tmp_path):
    uri, options = debian_fetch.main_archive(etc(tmp_path, debian__sources=DEB822), "bookworm", {})
    assert uri == "mirror+file:///etc/apt/mirrors/debian.list"
    assert options["signed-by"] == "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_one_line(tmp_path):
    uri, options = debian_fetch.main_archive(etc(tmp_path, sources__list=ONE_LINE), "bookworm", {})
    assert uri == "http://mirror.example/debian"
    assert options["signed-by"] == "/k/debian-archive-keyring.gpg"


def test_embedded_key_survives(tmp_path):
    text = ("Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
            "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc=\n"
            " -----END PGP PUBLIC KEY BLOCK-----\n")
    _, options = debian_fetch.main_archive(etc(tmp_path, debian__sources=text), "trixie", {})
    assert options["signed-by"].splitlines()[2] == " ."


def test_stable_alias_counts_as_the_release(tmp_path):
    text = "deb http://mirror.example/debian stable main\n"
    uri, _ = debian_fetch.main_archive(etc(tmp_path, sources__list=text), "trixie", {})
    assert uri == "http://mirror.example/debian"


def test_origin_rules_out_a_third_party_with_the_same_suite(tmp_path):
    text = ("deb http://third.example/debian bookworm main\n"
            "deb http://mirror.example/debian bookworm main\n")
    uri, _ = debian_fetch.main_archive(
        etc(tmp_path, sources__list=text), "bookworm",
        {"http://third.example/debian": "Third", "http://mirror.example/debian": "Debian"})
    assert uri == "http://mirror.example/debian"


def test_no_debian_archive_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(debian_fetch.FetchError, match="QEMU_TARBALL"):
        debian_fetch.main_archive(etc(tmp_path), "bookworm", {})


def test_half_written_tarball_in_the_cache_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = debian_fetch.cache_dir()
    whole = cache / "part"
    whole.write_bytes(b"whole")
    good = cache / f"qemu-10.0.2-{debian_fetch.sha256(whole)}.tar.xz"
    whole.rename(good)
    broken = cache / f"qemu-10.0.13-{'0' * 64}.tar.xz"
    broken.write_bytes(b"half")
    assert debian_fetch.cached_tarball(cache) == good
    assert not broken.exists()


def test_qemu_tarball_that_does_not_exist_is_an_error(monkeypatch):
    monkeypatch.setenv("QEMU_TARBALL", "no/such/file")
    with pytest.raises(debian_fetch.FetchError, match="no such file"):
        debian_fetch.qemu_tarball()


def test_security_updates_come_from_the_security_archive(tmp_path):
    text = DEB822 + "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    uri, _ = debian_fetch.security_archive(etc(tmp_path, debian__sources=text), "bookworm", {})
    assert uri == "http://mirror.example/debian-security"


def test_linux_tarball_is_taken_out_of_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LINUX_TARBALL", raising=False)
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: linux-source-6.12\nVersion: 6.12.99-1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@localhost.invalid>\nDescription: a test\n", encoding="utf-8")
    tarball = root / debian_fetch.LINUX_TARBALL
    tarball.parent.mkdir(parents=True)
    tarball.write_bytes(b"source")
    deb = tmp_path / "linux-source-6.12_6.12.99-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(deb)], check=True,
                   stdout=subprocess.DEVNULL)
    cache = debian_fetch.cache_dir()
    path = debian_fetch.unpack_linux_deb(deb, cache)
    assert path.read_bytes() == b"source" and path.name.startswith("linux-6.12.99-")
    assert debian_fetch.linux_tarball() == path
    with pytest.raises(debian_fetch.FetchError, match="not of Linux 6.12"):
        debian_fetch.unpack_linux_deb(tmp_path / "linux-source-6.1_6.1.1-1_all.deb", cache)
