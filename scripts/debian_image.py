#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the Debian guest of tests/debian, and prints the directory that holds it.

The directory has `root.ext4`, `vmlinuz` and `initrd`. It is kept in
${XDG_CACHE_HOME:-~/.cache}/kintsugi under a name that holds the hash of all that it is made from,
and appears by one rename, so it is whole or not there.

The root is made by debootstrap from the mirror that the machine's own sources.list names, for the
machine's own release; it needs root. It is kept as a tarball, so that a change to what the tests
put into the guest takes seconds.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import debian_fetch

REPO = pathlib.Path(__file__).resolve().parent.parent
GUEST = REPO / "tests" / "debian" / "guest"
PACKAGES = ("systemd-sysv", "udev", "kmod", "iproute2", "e2fsprogs", "linux-image-cloud-amd64",
            "initramfs-tools", "python3", "fio", "redis-server")
IMAGE_SIZE = "2G"
LABEL = "kintsugi-root"

# What is written into the root. Files of GUEST go to /opt/kintsugi.
FILES = {
    "etc/hostname": "guest\n",
    "etc/fstab": f"LABEL={LABEL} / ext4 errors=panic 0 1\n",
    "etc/systemd/network/user.network":
        "[Match]\nDriver=virtio_net\n\n[Network]\nDHCP=yes\nLinkLocalAddressing=no\n",
    "etc/systemd/system/kintsugi-agent.service":
        "[Unit]\nDescription=Does what the tests ask\nAfter=redis-server.service\n\n"
        "[Service]\nExecStart=/usr/bin/python3 /opt/kintsugi/agent.py\n\n"
        "[Install]\nWantedBy=multi-user.target\n",
    "etc/systemd/journald.conf.d/volatile.conf": "[Journal]\nStorage=volatile\n",
}
REDIS = 'appendonly yes\nappendfsync everysec\nsave ""\nauto-aof-rewrite-percentage 0\n'
ENABLED = ("kintsugi-agent.service", "systemd-networkd.service", "redis-server.service")
# Nothing is to wake up in the middle of a test.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
          "e2scrub_all.timer", "fstrim.timer", "getty@tty1.service", "logrotate.timer",
          "systemd-networkd-wait-online.service", "e2scrub_reap.service")


class ImageError(Exception):
    """Something a user can mend; the message says how."""


def say(text):
    print(f"[debian-image] {text}", file=sys.stderr, flush=True)


def run(*command, **options):
    """Run a command; its output is shown if it fails."""
    command = [str(word) for word in command]
    done = subprocess.run(command, text=True, errors="replace", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False, **options)
    if done.returncode != 0:
        raise ImageError(f"{command[0]} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def release():
    return debian_fetch.os_release().get("VERSION_CODENAME", "")


def guest_files():
    return sorted(GUEST.glob("*.py"))


def configure(root):
    """Make the root the guest's."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with (root / "etc/redis/redis.conf").open("a", encoding="utf-8") as file:
        file.write(REDIS)
    (root / "opt/kintsugi").mkdir(parents=True)
    for path in guest_files():
        shutil.copy(path, root / "opt/kintsugi")
    # The machine's id is made at the first boot.
    (root / "etc/machine-id").write_text("", encoding="utf-8")
    run("systemctl", "--root", root, "enable", *ENABLED)
    run("systemctl", "--root", root, "mask", *MASKED)


def image():
    """The directory of the image, made if need be."""
    cache = debian_fetch.cache_dir()
    key = debian_fetch.short_hash(release(), pathlib.Path(__file__).read_bytes(),
                     *(path.read_bytes() for path in guest_files()))
    final = cache / f"debian-guest-{key}"
    if final.is_dir():
        return final
    if os.geteuid() != 0:
        raise ImageError("making the guest's root needs root: run `make test-guest` as root once")
    with tempfile.TemporaryDirectory(prefix="debian-", dir=cache) as name:
        temp = pathlib.Path(name)
        root, made = temp / "root", temp / "image"
        tarball = debian_fetch.root_tarball(release(), PACKAGES)
        for path in (root, made):
            path.mkdir()
        run("tar", "-C", root, "-xf", tarball)
        configure(root)
        boot = root / "boot"
        shutil.move(max(boot.glob("vmlinuz-*")), made / "vmlinuz")
        shutil.move(max(boot.glob("initrd.img-*")), made / "initrd")
        say("making the disk image")
        run("mke2fs", "-q", "-t", "ext4", "-L", LABEL, "-d", root, made / "root.ext4", IMAGE_SIZE)
        made.chmod(0o755)
        try:
            made.rename(final)
        except OSError:
            if not final.is_dir():      # else another made it meanwhile
                raise
    return final


def main():
    try:
        print(image())
    except (ImageError, debian_fetch.FetchError) as error:
        print(f"[debian-image] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
