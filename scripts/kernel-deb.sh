#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds Debian packages of what is committed in build/linux, to install on a real host:
# build/kernel-deb/*.deb.
#
# The configuration is upstream's x86_64_defconfig with linux-patches/config/deb.config on top: it
# has the drivers of common servers, built as modules or in, but by far not all that Debian's own
# kernel has, whose build takes hours. DEB_CONFIG=FILE (a whole .config, such as /boot/config-* of
# the machine it is for) replaces both, but for the options of deb.config.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
name=kernel-deb
build=$root/build/$name/tree
log=build/logs
fragment=$root/linux-patches/config/deb.config
jobs=${JOBS:-$(nproc)}

. "$root/scripts/ccache-env.sh"
unset MAKEFLAGS MFLAGS MAKELEVEL

scripts/deps.sh kernel-deb
mkdir -p "$log"
scripts/linux-worktree.sh "$name" "$build"
set -- make -C "$build" ARCH=x86 CC="ccache gcc" HOSTCC="ccache gcc" \
    KBUILD_BUILD_USER=kintsugi KBUILD_BUILD_HOST=build
{
    if [ -n "${DEB_CONFIG:-}" ]; then
        cp "$DEB_CONFIG" "$build/.config"
    else
        "$@" -s x86_64_defconfig
    fi
    (cd "$build" && scripts/kconfig/merge_config.sh -m .config "$fragment")
    "$@" -s olddefconfig
} > "$log/$name-config.log" 2>&1 || { tail -n 30 "$log/$name-config.log" >&2; exit 1; }
scripts/kernel_config.py "$build/.config" "$fragment"

rm -f "build/$name"/*.deb
scripts/step.py "$name" "$log/$name-build.log" "building, the first time takes about an hour" -- \
    "$@" -j "$jobs" LOCALVERSION=-kintsugi bindeb-pkg
ls "build/$name"/linux-image-*.deb
