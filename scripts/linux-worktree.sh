#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Makes a second work tree of build/linux, or updates it to what is committed there.
#
#   linux-worktree.sh NAME DIRECTORY      NAME is that of the step, for messages
set -eu

name=$1 directory=$2
tree=$(cd "$(dirname "$0")/.." && pwd)/build/linux
git() {
    command git -c safe.directory='*' "$@"
}

if [ -n "$(git -C "$tree" status --porcelain)" ]; then
    echo "[$name] error: $tree has changes that are in no commit, and only commits are built" >&2
    exit 1
fi
commit=$(git -C "$tree" rev-parse HEAD)
if [ "$(git -C "$directory" rev-parse --show-toplevel 2>/dev/null)" = "$directory" ]; then
    [ "$(git -C "$directory" rev-parse HEAD)" = "$commit" ] ||
        git -C "$directory" checkout -q -f --detach "$commit"
    exit 0
fi
rm -rf "$directory"
mkdir -p "$(dirname "$directory")"
git -C "$tree" worktree prune
echo "[$name] checking out $directory"
git -C "$tree" worktree add -q --detach "$directory" "$commit"
