#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Writes BUILD/kintsugi.pc for the CMake build directory BUILD, so that QEMU's meson finds the
# library in the build tree: kintsugi-pc.sh BUILD
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
version=$(sed -n 's/^project(kintsugi VERSION \([0-9.]*\).*/\1/p' "$root/CMakeLists.txt")

cat > "$build/kintsugi.pc.new" <<END
Name: kintsugi
Description: Page placement, paging and the page protocol of Kintsugi
Version: ${version:-0}
Cflags: -I$root/lib/include
Libs: $build/lib/libkintsugi.a -lspdlog -lfmt -lstdc++ -lpthread
END
if cmp -s "$build/kintsugi.pc.new" "$build/kintsugi.pc"; then
    rm "$build/kintsugi.pc.new"
else
    mv "$build/kintsugi.pc.new" "$build/kintsugi.pc"
fi
