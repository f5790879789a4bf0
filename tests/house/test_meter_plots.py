# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/meter_plots.py, on the file of a real run.

data/meter.jsonl is the write meter's of tests/guest/bareguest.c, which swept 32 MiB of "mram" again
and again, and step by step "dram" in its place, as if its pages were swapped.
"""

import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree

import meter_plots
import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "meter_plots.py"
METER = ROOT / "tests" / "house" / "data" / "meter.jsonl"
SWEPT = 805306368                       # bytes of each range, as the guest was told


def run(*arguments):
    return subprocess.run([str(SCRIPT), *map(str, arguments)], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)


def draw(*arguments):
    """The text of the SVG, after a look at both pictures."""
    stem = arguments[-1]
    done = run(*arguments[:-1], "-o", stem)
    assert done.returncode == 0, done.stderr
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 10_000
    return svg.read_text(encoding="utf-8")


def labels(svg):
    root = ElementTree.fromstring(svg)
    return {"".join(node.itertext()).strip() for node in root.iter()
            if node.tag.endswith("}text")}


def longest_paths(svg):
    """Points of each path, the most first."""
    return sorted((len(re.findall("[ML]", path)) for path in re.findall(r' d="([^"]*)"', svg)),
                  reverse=True)


@pytest.fixture
def swaps(tmp_path):
    path = tmp_path / "swaps.jsonl"
    unix_time = json.loads(METER.read_text(encoding="utf-8").splitlines()[0])["unix_time"]
    lines = [{"format": "kintsugi-swaps", "version": 1, "unix_time": unix_time + 1},
             {"time": 0, "program": "mcf"}, {"time": 3, "pairs": 1000}, {"time": 8, "pairs": 400},
             {"time": 9, "program": "gcc"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_tables():
    done = run("table", METER)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[:3] == [["Range", "Start", "Size"], ["dram", "0x4000000", "32", "MiB"],
                         ["mram", "0x8000000", "32", "MiB"]]
    assert lines[4] == ["MB", "read", "written"]
    assert lines[5][:2] == ["dram", f"{SWEPT / 1e6:,.2f}"]
    # The last 4 MiB, the cache's size, were still in it.
    assert float(lines[5][2]) == pytest.approx((SWEPT - (4 << 20)) / 1e6, abs=0.1)
    assert lines[6] == ["mram", f"{SWEPT / 1e6:,.2f}", f"{SWEPT / 1e6:,.2f}"]


def test_rates_are_of_the_interval():
    series = meter_plots.Series([1.0, 1.5, 3.5], [0, 0, 0], [2_000_000, 2_000_000, 4_000_000])
    assert series.rates(series.written) == [2.0, 4.0, 2.0]


def test_writes(tmp_path, swaps):
    svg = draw("writes", METER, "--swaps", swaps, tmp_path / "five")
    assert {"dram", "mram", "mcf", "gcc", "written, MB/s", "time, s"} <= labels(svg)
    assert "other" not in labels(svg)
    intervals = METER.read_text(encoding="utf-8").count('"range":"mram"')
    assert intervals > 10
    # Points that lie on a straight line may be left out, so mram's at least are almost all there.
    assert longest_paths(svg)[0] > intervals / 2
    assert draw("writes", METER, "--swaps", swaps, tmp_path / "again") == svg
    assert "other" in labels(draw("writes", METER, "--reads", "--ranges", "mram,other",
                                  tmp_path / "reads"))


def test_swaps(tmp_path, swaps):
    svg = draw("swaps", swaps, "--meter", METER, tmp_path / "six")
    assert {"pairs of pages swapped", "mcf", "gcc", "1000"} <= labels(svg)


def test_compare(tmp_path, swaps):
    other = tmp_path / "without.jsonl"
    other.write_bytes(METER.read_bytes())
    svg = draw("compare", METER, other, "--swaps", swaps, tmp_path / "seven")
    assert {"with page swaps", "without page swaps", "mcf"} <= labels(svg)
    done = run("compare", METER, other, "-o", tmp_path / "seven")
    assert "meter written" in done.stdout and "without written" in done.stdout


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path):
    path = tmp_path / "meter.jsonl"
    path.write_bytes(METER.read_bytes().rsplit(b"\n", 2)[0] + b'\n{"end":14.5,"acc')
    assert run("table", path).stdout == run("table", METER).stdout


HEADER = '{"format":"kintsugi-meter","version":1,"unix_time":1,"ranges":[]}\n'


@pytest.mark.parametrize("text, message", [
    ("", "is empty"),
    ("time,range\n", ":1: not JSON"),
    ('{"format":"kintsugi-swaps","version":1}\n', "not a file of format kintsugi-meter"),
    (HEADER.replace("1,", "2,", 1), "version 1"),
    (HEADER.replace('"ranges":[]', '"a":1'), ':1: "ranges" is missing'),
    (HEADER, "no intervals"),
    (HEADER + "[]\n", ":2: not a JSON object"),
    (HEADER + '{"time":1,"range":"a","read":1}\n', ':2: "written" is missing'),
    (HEADER + '{"time":1,"range":"a","read":1,"written":true}\n', ':2: "written" is missing'),
    (HEADER + '{"time":2,"range":"a","read":1,"written":1}\n'
     '{"time":1,"range":"a","read":1,"written":1}\n', ":3: time 1 comes after 2"),
])
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "meter.jsonl"
    path.write_text(text, encoding="utf-8")
    done = run("table", path)
    assert done.returncode == 1 and not done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr


def test_what_cannot_be_drawn_is_refused(tmp_path):
    done = run("writes", METER, "--ranges", "dram,pram", "-o", tmp_path / "x")
    assert done.returncode == 1 and "no range pram: it has dram, mram, other" in done.stderr
    assert "cannot read" in run("table", tmp_path / "none").stderr
    assert "cannot write" in run("writes", METER, "-o", tmp_path / "no" / "x").stderr
