#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Configures and builds QEMU from the tree that source_tree.py keeps.
#
#   qemu-build.sh          build/qemu       -> build/qemu-build/qemu-system-x86_64
#   qemu-build.sh stock    build/qemu-stock -> build/qemu-stock-build/qemu-system-x86_64
#   qemu-build.sh [stock] tests     the same, and what tests/qemu/programs.txt names
#
# Both are configured alike, so that they can be compared. Needs `make lib` first.
set -eu

# Options of QEMU's configure. Everything is off but what is named, so that a missing library is an
# error and never a missing feature: what Debian's qemu-system-x86 and qemu-utils have, but for
# GUI, sound, spice, OpenGL and network storage. Firmware is Debian's.
QEMU_CONFIGURE="
    --target-list=x86_64-softmmu
    --without-default-features
    --firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu
    --disable-install-blobs --disable-download --disable-docs --disable-werror
    --enable-system --enable-tools --enable-tcg --enable-kvm --enable-plugins
    --enable-attr --enable-virtfs --enable-cap-ng --enable-seccomp --enable-tpm
    --enable-linux-aio --enable-linux-io-uring --enable-libpmem --enable-numa
    --enable-gnutls --enable-keyring --enable-zstd --enable-bzip2
    --enable-slirp --enable-vde --enable-l2tpv3 --enable-bpf --enable-rdma
    --enable-vhost-kernel --enable-vhost-net --enable-vhost-user --enable-vhost-vdpa
    --enable-vhost-crypto --enable-vhost-user-blk-server --enable-libvduse
    --enable-vduse-blk-export --enable-fuse
    --enable-vnc --enable-vnc-jpeg --enable-vnc-sasl --enable-png --enable-pixman
    --enable-curses --enable-iconv
    --enable-libudev --enable-libusb --enable-usb-redir --enable-smartcard
    --enable-capstone --enable-membarrier --enable-malloc-trim --enable-coroutine-pool
    --enable-avx2 --enable-avx512bw --enable-hv-balloon --enable-multiprocess
    --enable-replication --enable-colo-proxy
    --enable-bochs --enable-cloop --enable-dmg --enable-qcow1 --enable-qed --enable-parallels
    --enable-vdi --enable-vhdx --enable-vmdk --enable-vpc --enable-vvfat
"
# What ninja builds.
QEMU_TARGETS="qemu-system-x86_64 qemu-img qemu-io qemu-nbd storage-daemon/qemu-storage-daemon"

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
name=qemu
[ "${1:-}" != stock ] || { name=qemu-stock; shift; }
case "$*" in
"") ;;
tests) QEMU_TARGETS="$QEMU_TARGETS $(sed -n 's/^\(tests[^ ]*\) .*/\1/p' tests/qemu/programs.txt)" ;;
*) echo "usage: qemu-build.sh [stock] [tests]" >&2; exit 2 ;;
esac
source=$root/build/$name
build=$source-build
log=build/logs
jobs=${JOBS:-$(nproc)}

. "$root/scripts/ccache-env.sh"

# One build of a kind at a time.
mkdir -p build/logs
exec 9> "build/.$name.lock"
flock -n 9 || { echo "[$name] waiting for another build to end"; flock 9; }
export PKG_CONFIG_PATH="$root/build/cmake${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
# Another Python may come first in PATH; QEMU's configure and ninja rules must not meet it.
export PATH="/usr/bin:$PATH"
unset PYTHONHOME VIRTUAL_ENV

# QEMU needs meson >= 1.5. Debian 12 has it in backports only: unpack that package, as both
# configure and later ninja (which may configure again) import it.
meson_ok() {
    /usr/bin/python3 - <<END
import importlib.metadata, sys
try:
    version = importlib.metadata.version("meson").split(".")
except importlib.metadata.PackageNotFoundError:
    sys.exit(1)
sys.exit(not (int(version[0]), int(version[1])) >= (1, 5))
END
}
if ! meson_ok; then
    meson=$root/build/meson
    "$root/scripts/debian_fetch.py" meson "$meson" > /dev/null
    export PYTHONPATH="$meson/usr/lib/python3/dist-packages"
    export PATH="$meson/usr/bin:$PATH"
    meson_ok || { echo "[$name] error: the meson in $meson cannot be imported" >&2; exit 1; }
fi

# Configured once for a set of options and of the files that configure and meson read.
# shellcheck disable=SC2086
key=$({ echo $QEMU_CONFIGURE "$root"
        cat "$source/configure" "$source/pythondeps.toml" build/cmake/kintsugi.pc
    } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$build/.configured" 2>/dev/null)" != "$key" ]; then
    rm -rf "$build"
    mkdir -p "$build"
    # shellcheck disable=SC2086
    (cd "$build" && "$root/scripts/step.py" "$name" "$root/$log/$name-configure.log" \
        "configuring" -- "$source/configure" --cc="ccache gcc" --cxx="ccache g++" \
        --python=/usr/bin/python3 $QEMU_CONFIGURE)
    echo "$key" > "$build/.configured"
fi

# shellcheck disable=SC2086
exec "$root/scripts/step.py" "$name" "$log/$name-build.log" \
    "building, the first time takes about 6 minutes" -- \
    ninja -j "$jobs" -C "$build" $QEMU_TARGETS
