#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs what is built: QEMU and its tools with a suffix, so beside the distribution's, the memory
# server, man pages, systemd units and the udev rule for userfaultfd.
#
#   install.sh PREFIX     below $DESTDIR, if that is set
#
# UNITDIR, UDEVDIR: for units and udev rules, instead of systemd/system and udev/rules.d below
# PREFIX/lib.
set -eu

prefix=${1:?usage: install.sh PREFIX}
case $prefix in
/*) ;;
*) echo "[install] error: PREFIX=$prefix is not an absolute path" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
to=${DESTDIR:-}$prefix
suffix=-kintsugi
build=build/qemu-build

cmake --install build/cmake --prefix "$prefix" > /dev/null
units=${DESTDIR:-}${UNITDIR:-$prefix/lib/systemd/system}
install -D -m 644 memserver/kintsugi-memserver.service "$units/kintsugi-memserver.service"
# Its name says where it mounts, as systemd-escape writes it.
install -D -m 644 memserver/arena.mount "$units/var-lib-private-kintsugi\x2dmemserver.mount"

for program in qemu-system-x86_64 qemu-img qemu-io qemu-nbd storage-daemon/qemu-storage-daemon; do
    install -D -m 755 "$build/$program" "$to/bin/${program##*/}$suffix"
done
man=$to/share/man/man1
install -D -m 644 packaging/qemu-kintsugi.1 "$man/qemu-kintsugi.1"
for program in qemu-system-x86_64 qemu-img qemu-io qemu-nbd qemu-storage-daemon; do
    ln -sf qemu-kintsugi.1 "$man/$program$suffix.1"
done
install -D -m 644 packaging/60-kintsugi-userfaultfd.rules \
    "${DESTDIR:-}${UDEVDIR:-$prefix/lib/udev/rules.d}/60-kintsugi-userfaultfd.rules"
echo "[install] installed below $to"
