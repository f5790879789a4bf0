# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh disable=SC2154
# Sourced with $root set: another checkout of the same content must hit the compiler cache.
export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1
# Not include_file_mtime: a header that changes while it is compiled must not poison the cache.
export CCACHE_SLOPPINESS=time_macros,locale
