#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Configures (when needed) and builds one variant of the C++ parts.
#
#   cmake-build.sh VARIANT [TARGET...]
#
# Variants: cmake (RelWithDebInfo), asan (ASan+UBSan), tsan, fuzz (clang, libFuzzer).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
variant=$1
shift
build=$root/build/$variant
. "$root/scripts/ccache-env.sh"

# One build of a kind at a time.
mkdir -p build/logs
exec 9> "build/.$variant.lock"
flock -n 9 || { echo "[$variant] waiting for another build to end"; flock 9; }

# Sanitizers run with assertions on, so without RelWithDebInfo's NDEBUG.
with_assertions=-DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g"
case $variant in
cmake)
    about="building the C++ parts"
    set -- -- "$@" ;;
asan)
    about="building with address and undefined behaviour sanitizers"
    set -- -DKINTSUGI_SANITIZE=address,undefined -DKINTSUGI_BENCH=OFF "$with_assertions" -- "$@" ;;
tsan)
    about="building with the thread sanitizer"
    set -- -DKINTSUGI_SANITIZE=thread -DKINTSUGI_BENCH=OFF "$with_assertions" -- "$@" ;;
fuzz)
    about="building the fuzz targets"
    set -- -DKINTSUGI_FUZZ=ON -DKINTSUGI_TESTS=OFF -DKINTSUGI_BENCH=OFF "$with_assertions" \
        -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -- "$@" ;;
*) echo "usage: cmake-build.sh cmake|asan|tsan|fuzz [TARGET...]" >&2; exit 2 ;;
esac

# Ninja configures again when a CMakeLists.txt changes; only other options need it from here.
options=$(printf '%s\n' "$@" | sed '/^--$/,$d')
key=$(printf '%s\n%s\n' "$root" "$options" | cksum)
if [ ! -f "$build/build.ninja" ] || [ "$(cat "$build/.configured" 2>/dev/null)" != "$key" ]; then
    rm -rf "$build"
    # The options are one a line.
    (
        IFS='
'
        set -f
        # shellcheck disable=SC2086
        scripts/step.py "$variant" "build/logs/$variant-configure.log" "configuring" -- \
            cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
            -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache $options
    )
    echo "$key" > "$build/.configured"
fi

# What follows the "--" are targets.
while [ "$1" != -- ]; do shift; done
shift
scripts/step.py "$variant" "build/logs/$variant-build.log" "$about" -- \
    ninja -j "${JOBS:-$(nproc)}" -C "$build" "$@"
