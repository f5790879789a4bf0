# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/lint.py remembers of clang-tidy."""

import lint
import pytest


@pytest.fixture
def sources(tmp_path):
    """A source that includes near.h beside it, and by that lib/far.h; lib/other.h is nobody's."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "main.cc").write_text('#include <vector>\n#include "near.h"\nint main() {}\n')
    (tmp_path / "near.h").write_text('#pragma once\n  #  include "far.h"\n#include "near.h"\n')
    (tmp_path / "lib" / "far.h").write_text("#pragma once\n")
    (tmp_path / "lib" / "other.h").write_text("#pragma once\n")
    return tmp_path


def key(sources):
    return lint.tidy_key({"file": str(sources / "main.cc"),
                          "command": f"g++ -I{sources}/lib -c main.cc"}, b"14")


@pytest.mark.parametrize("name", ["main.cc", "near.h", "lib/far.h"])
def test_a_change_of_what_is_included_is_seen(sources, name):
    before = key(sources)
    with open(sources / name, "a", encoding="utf-8") as file:
        file.write("// changed\n")
    assert key(sources) != before


def test_what_is_not_included_does_not_matter(sources):
    before = key(sources)
    (sources / "lib" / "other.h").write_text("// changed\n")
    assert key(sources) == before


def test_a_header_that_comes_to_stand_before_another_is_seen(sources):
    before = key(sources)
    (sources / "far.h").write_text("// found first\n")
    assert key(sources) != before
