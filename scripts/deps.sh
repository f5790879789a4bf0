#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs the Debian packages that building and testing need, once: a stamp named by the hash
# of the package list makes the next call return at once.
#
#   deps.sh               install what is missing
#   deps.sh kernel-deb    the same, with what `make kernel-deb` alone needs
#   deps.sh deb           the same for `make deb` and `make test-deb`
#   deps.sh --list        print the package list of this machine's release
set -eu

cd "$(dirname "$0")/.."
stamps=build/stamps

. /etc/os-release
case "${ID:-}:${VERSION_ID:-}" in
debian:12) clang_rt=libclang-rt-14-dev meson= ;;
debian:13) clang_rt=libclang-rt-19-dev meson=meson ;;
*)
    echo "[deps] warning: ${PRETTY_NAME:-this system} is not Debian 12 or 13; trying the names" \
         "of Debian 13" >&2
    clang_rt=libclang-rt-19-dev meson=meson ;;
esac

packages="
    git ca-certificates make ccache gcc g++ clang clang-tidy clang-format $clang_rt
    cmake ninja-build pkg-config $meson
    python3 python3-venv python3-setuptools python3-pytest python3-pytest-xdist
    python3-matplotlib
    dpkg-dev xz-utils bzip2
    libglib2.0-dev libpixman-1-dev zlib1g-dev libfdt-dev libattr1-dev flex bison
    libaio-dev libbpf-dev libbz2-dev libcacard-dev libcap-ng-dev libcapstone-dev libfuse3-dev
    libgnutls28-dev libibverbs-dev libjpeg-dev libncurses-dev libpmem-dev libpng-dev librdmacm-dev
    libsasl2-dev libseccomp-dev libslirp-dev libudev-dev libusb-1.0-0-dev libusbredirparser-dev
    libvdeplug-dev libzstd-dev
    bc libelf-dev libssl-dev libcap-dev libnuma-dev lz4
    liburing-dev libspdlog-dev libfmt-dev libcli11-dev nlohmann-json3-dev
    libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev prometheus-cpp-dev
    libsystemd-dev seabios qemu-system-data ipxe-qemu busybox-static cpio iproute2 mandoc
    shellcheck gdb spin openssl debootstrap e2fsprogs
    bochs bochs-term bochsbios vgabios grub-common grub-pc-bin xorriso
"
case "${1:-}" in
kernel-deb) packages="$packages build-essential debhelper rsync kmod" ;;
deb) packages="$packages build-essential debhelper lintian" ;;
esac
# One space between names, whatever the layout above.
# shellcheck disable=SC2086
packages=$(echo $packages)

if [ "${1:-}" = --list ]; then
    echo "$packages" | tr ' ' '\n'
    exit 0
fi

kind=deps${1:+-$1}
stamp=$stamps/$kind-$(printf '%s %s' "${VERSION_ID:-}" "$packages" | cksum | cut -d' ' -f1)
[ ! -e "$stamp" ] || exit 0

missing=
for package in $packages; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done

if [ -n "$missing" ]; then
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || {
            echo "[deps] error: not root and no sudo; as root, run: apt-get install$missing" >&2
            exit 1
        }
        sudo=sudo
    fi
    # shellcheck disable=SC2086
    set -- $missing
    echo "[deps] installing $# packages:$missing"
    mkdir -p build/logs
    log=build/logs/deps.log
    : > "$log"
    apt() {
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 \
            -o DPkg::Lock::Timeout=300 "$@" >> "$log" 2>&1
    }
    tries=3
    attempt=1
    while ! { apt -q update && apt -qy --no-install-recommends install "$@"; }; do
        if [ "$attempt" -ge "$tries" ]; then
            tail -n 30 "$log" >&2
            echo "[deps] error: apt-get failed $tries times; its output is in $log" >&2
            exit 1
        fi
        echo "[deps] apt-get failed (attempt $attempt of $tries), trying again in 10 s"
        attempt=$((attempt + 1))
        sleep 10
    done
    echo "[deps] done"
fi

mkdir -p "$stamps"
rm -f "$stamps/$kind"-[0-9]*
: > "$stamp"
