#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that a kernel's configuration is what a fragment asked for.

    kernel_config.py .config FRAGMENT

kconfig drops in silence what it does not know or what lacks a dependency. Names each such option
and fails; the last line of the fragment on an option counts.
"""

import pathlib
import re
import sys

SET_RE = re.compile(r"(CONFIG_\w+)=(.*)$")
UNSET_RE = re.compile(r"# (CONFIG_\w+) is not set$")


def options(text):
    """{option: value}; "n" for what is not set."""
    found = {}
    for line in text.splitlines():
        if match := SET_RE.match(line):
            found[match[1]] = match[2]
        elif match := UNSET_RE.match(line):
            found[match[1]] = "n"
    return found


def differences(config, fragment):
    """Lines that say what of `fragment` is not so in `config`."""
    have = options(config)
    return [f"{name}={value} was asked for, but it is {have.get(name, 'n')}"
            for name, value in options(fragment).items() if have.get(name, "n") != value]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    config, fragment = (pathlib.Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
    found = differences(config, fragment)
    for line in found:
        print(f"[kernel-config] {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
