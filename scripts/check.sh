#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds one variant of the unit tests and runs them: check.sh cmake|asan|tsan
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
variant=$1
scripts/cmake-build.sh "$variant"

export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
# The thread sanitizer of older compilers cannot live with wide address randomisation.
fixed=
if [ "$variant" = tsan ] && setarch "$(uname -m)" -R true 2>/dev/null; then
    fixed="setarch $(uname -m) -R"
fi

mkdir -p build/results
# shellcheck disable=SC2086
exec scripts/step.py "$variant" "build/logs/$variant-tests.log" "running the unit tests" -- \
    $fixed ctest --test-dir "build/$variant" --output-on-failure --no-tests=error \
    -j "${JOBS:-$(nproc)}" --timeout 300 --output-junit "$root/build/results/check-$variant.xml"
