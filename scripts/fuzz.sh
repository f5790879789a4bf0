#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs every libFuzzer target of build/fuzz on its corpus.
#
#   fuzz.sh smoke    a bounded number of runs with a fixed seed
#   fuzz.sh long     $FUZZ_SECONDS seconds each (default 600), random seed
#
# The corpus of a target is tests/fuzz/corpus/TARGET, or tests/fuzz/corpus. It is only read; new
# inputs and the input of a crash go to build/fuzz-work/TARGET.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/cmake-build.sh fuzz tests/fuzz/all

results=build/results/fuzz-smoke.txt
mkdir -p build/results
: > "$results"
status=0
for program in $(find build/fuzz/tests/fuzz -maxdepth 1 -type f -perm -100 -name '*fuzz*' | sort)
do
    name=$(basename "$program")
    work=build/fuzz-work/$name
    mkdir -p "$work"
    corpus=tests/fuzz/corpus
    [ ! -d "$corpus/$name" ] || corpus=$corpus/$name
    [ -d "$corpus" ] || corpus=
    if [ "$1" = smoke ]; then
        set -- smoke -runs=30000 -seed=1 -max_total_time=30
        about="30000 runs of $name"
        # A fixed start: what an earlier run found must not change this one.
        rm -rf "$work"
        mkdir -p "$work"
    else
        set -- long -max_total_time="${FUZZ_SECONDS:-600}" -jobs=0
        about="$name for ${FUZZ_SECONDS:-600} s"
    fi
    mode=$1
    shift
    # shellcheck disable=SC2086
    if scripts/step.py fuzz "build/logs/fuzz-$name.log" "$about" -- \
        "$program" "$@" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$work/" "$work" $corpus; then
        echo "pass $name" >> "$results"
    else
        echo "fail $name see build/logs/fuzz-$name.log; the input is in $work" >> "$results"
        status=1
    fi
    set -- "$mode"
done
if [ ! -s "$results" ]; then
    echo "[fuzz] error: no fuzz target in build/fuzz/tests/fuzz" >&2
    exit 1
fi
exit $status
