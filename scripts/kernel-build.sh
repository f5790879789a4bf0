#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds the kernel of the emulated hosts from the tree that source_tree.py keeps.
#
#   kernel-build.sh           host.config                  -> build/kernel/bzImage
#   kernel-build.sh debug     host.config and debug.config -> build/kernel-debug/bzImage
#
# The first builds in build/linux itself, so that an edit there needs no more than `make kernel`.
# The second builds what is committed there, in a work tree of its own.
#
# KERNEL_CONFIG=FILE merges one more fragment over them, as for a single experiment.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
config=linux-patches/config
tree=$root/build/linux
case "${1:-}" in
"")
    name=kernel fragments=$config/host.config source=$tree
    about="the first time takes about 10 minutes"
    ;;
debug)
    name=kernel-debug fragments="$config/host.config $config/debug.config"
    source=$root/build/kernel-debug/tree
    about="the first time takes about 20 minutes"
    ;;
*) echo "usage: kernel-build.sh [debug]" >&2; exit 2 ;;
esac
fragments="$fragments ${KERNEL_CONFIG:-}"
output=$root/build/$name
log=build/logs
jobs=${JOBS:-$(nproc)}

. "$root/scripts/ccache-env.sh"
# Flags and variables of a make above us are not for this one.
unset MAKEFLAGS MFLAGS MAKELEVEL

# One build of a kind at a time.
mkdir -p build/logs "$output"
exec 9> "build/.$name.lock"
flock -n 9 || { echo "[$name] waiting for another build to end"; flock 9; }

if [ "$source" != "$tree" ]; then
    scripts/linux-worktree.sh "$name" "$source"
fi

# Even a make with nothing to do takes long, so ask git what the tree is.
# shellcheck disable=SC2086
key=$({
    cat "$0" $fragments
    gcc --version
    git -C "$source" -c safe.directory='*' rev-parse 'HEAD^{tree}'
    git -C "$source" -c safe.directory='*' diff HEAD
    cd "$source"
    git -c safe.directory='*' ls-files -o --exclude-standard -z | xargs -0r sha256sum
} | sha256sum | cut -d' ' -f1)
[ "$(cat "$output/.built" 2>/dev/null)" != "$key" ] || [ ! -e "$output/bzImage" ] ||
    [ ! -e "$source/usr/include/linux/kvm.h" ] || exit 0
rm -f "$output/.built"

# Nothing of this machine or hour gets into the image, so that ccache knows it again.
set -- make -C "$source" ARCH=x86 CC="ccache gcc" HOSTCC="ccache gcc" \
    KBUILD_BUILD_TIMESTAMP=2025-01-01 KBUILD_BUILD_USER=kintsugi KBUILD_BUILD_HOST=build

# The last word on an option counts. The same .config keeps its time, which make compares.
# shellcheck disable=SC2086
cat $fragments > "$output/fragments.config"
cp -p "$source/.config" "$output/config.before" 2>/dev/null || :
scripts/step.py "$name" "$log/$name-config.log" "configuring" -- \
    "$@" -s KCONFIG_ALLCONFIG="$output/fragments.config" allnoconfig
scripts/kernel_config.py "$source/.config" "$output/fragments.config"
if cmp -s "$source/.config" "$output/config.before"; then
    cp -p "$output/config.before" "$source/.config"
fi

scripts/step.py "$name" "$log/$name-build.log" "building, $about" -- \
    "$@" -j "$jobs" bzImage headers
for file in arch/x86/boot/bzImage vmlinux; do
    ln -f "$source/$file" "$output/${file##*/}"
done
echo "$key" > "$output/.built"
