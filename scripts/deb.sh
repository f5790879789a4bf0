#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Debian packages of what is built, for this machine's release: build/deb/*.deb. `make deb` builds
# first.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
out=build/deb
version=$(sed -n 's/^project(kintsugi VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
# Of the last commit, so that the same checkout gives the same packages.
date=$(git log -1 --format=%cD 2>/dev/null || date -R)

scripts/deps.sh deb
rm -rf "$out"
mkdir -p "$out/tree"
cp -r packaging/debian "$out/tree/debian"
sed "s/@VERSION@/$version/; s/@DATE@/$date/" packaging/debian/changelog \
    > "$out/tree/debian/changelog"
mkdir -p build/logs
export KINTSUGI_ROOT="$root"
unset MAKEFLAGS MFLAGS MAKELEVEL
(cd "$out/tree" && "$root/scripts/step.py" deb "$root/build/logs/deb.log" "packing" -- \
    dpkg-buildpackage -b -us -uc)
rm -rf "$out/tree"
ls "$out"/*.deb
