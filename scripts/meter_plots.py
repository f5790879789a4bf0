#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and pictures of a meter's file (docs/write-meter.md), as P4 has them.

    meter_plots.py table METER...              which range is where, and its traffic (tables 1, 2)
    meter_plots.py writes METER -o STEM        rate of writes over time (figure 5)
    meter_plots.py swaps SWAPS -o STEM         pages swapped over time (figures 6 and 9)
    meter_plots.py compare WITH WITHOUT -o STEM   both runs, one above the other (figures 7 and 8)

Each picture is STEM.png and STEM.svg. With --swaps, pictures show which program ran when, where the
file of swaps says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MB = 1e6                                    # P4's unit
OTHER = "other"
WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 3.2, 120
LABELS_MAX = 40


class PlotError(Exception):
    """Something the user can act on."""


@dataclasses.dataclass(frozen=True)
class Range:
    """One piece of physical memory, in bytes."""

    name: str
    start: int
    size: int


@dataclasses.dataclass
class Series:
    """Traffic of one name: bytes in each interval, and when it ended, in seconds."""

    time: list[float] = dataclasses.field(default_factory=list)
    read: list[int] = dataclasses.field(default_factory=list)
    written: list[int] = dataclasses.field(default_factory=list)

    def rates(self, values: list[int]) -> list[float]:
        """MB/s of each interval."""
        before = [0.0, *self.time[:-1]]
        return [value / MB / (end - begin) if end > begin else 0.0
                for value, begin, end in zip(values, before, self.time)]


@dataclasses.dataclass
class Meter:
    """A meter's file."""

    path: Path
    unix_time: float
    ranges: list[Range]
    series: dict[str, Series]               # in the order of the file


@dataclasses.dataclass
class Swaps:
    """A file of swaps; times in seconds since its unix_time."""

    unix_time: float
    swaps: list[tuple[float, int]]          # when, and how many pairs
    programs: list[tuple[float, str]]       # from when on


def objects(path: Path, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a file of JSON lines, the header first, which is checked."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlotError(f"cannot read {path}: {error}") from error
    lines = text.splitlines()
    if lines and not text.endswith("\n"):
        lines.pop()                         # whoever writes it is at it, or was killed
    if not lines:
        raise PlotError(f"{path} is empty: it must begin with a line of format {kind}")
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise PlotError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(found, dict):
            raise PlotError(f"{path}:{number}: not a JSON object")
        if number == 1 and (found.get("format"), found.get("version")) != (kind, 1):
            raise PlotError(f"{path}: not a file of format {kind}, version 1")
        yield number, found


def field(path: Path, number: int, line: dict[str, Any], name: str, kind: type | tuple) -> Any:
    """A member of a line, which has to be there."""
    value = line.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlotError(f"{path}:{number}: \"{name}\" is missing or not what it should be")
    return value


def read_meter(path: Path) -> Meter:
    """Reads a meter's file; what it does not know it passes over."""
    lines = objects(path, "kintsugi-meter")
    number, header = next(lines)
    ranges = [Range(field(path, number, entry, "name", str),
                    field(path, number, entry, "start", int),
                    field(path, number, entry, "size", int))
              for entry in field(path, number, header, "ranges", list)]
    meter = Meter(path, field(path, number, header, "unix_time", (int, float)), ranges, {})
    for number, line in lines:
        if "time" not in line:
            continue
        series = meter.series.setdefault(field(path, number, line, "range", str), Series())
        time = field(path, number, line, "time", (int, float))
        if series.time and time < series.time[-1]:
            raise PlotError(f"{path}:{number}: time {time} comes after {series.time[-1]}")
        series.time.append(time)
        series.read.append(field(path, number, line, "read", int))
        series.written.append(field(path, number, line, "written", int))
    if not meter.series:
        raise PlotError(f"{path} has no intervals: the run was shorter than one")
    return meter


def read_swaps(path: Path) -> Swaps:
    """Reads a file of swaps."""
    lines = objects(path, "kintsugi-swaps")
    number, header = next(lines)
    found = Swaps(field(path, number, header, "unix_time", (int, float)), [], [])
    for number, line in lines:
        if "pairs" in line:
            found.swaps.append((field(path, number, line, "time", (int, float)),
                                field(path, number, line, "pairs", int)))
        elif "program" in line:
            found.programs.append((field(path, number, line, "time", (int, float)),
                                   field(path, number, line, "program", str)))
    return found


# --- Tables ----------------------------------------------------------------------------------


def size_text(size: int) -> str:
    """2147483648 as "2 GiB"."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:g} {units[0]}" if value == int(value) else f"{value:.1f} {units[0]}"


def layout(rows: list[list[str]]) -> str:
    """Columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join("  ".join(
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths))).rstrip() + "\n" for row in rows)


def tables(meters: list[Meter]) -> str:
    """P4's table 1 of each layout, and its table 2 of all runs."""
    out = ""
    shown: list[list[Range]] = []
    for meter in meters:
        if meter.ranges not in shown:
            shown.append(meter.ranges)
            rows = [["Range", "Start", "Size"]]
            rows += [[r.name, f"{r.start:#x}", size_text(r.size)] for r in meter.ranges]
            out += layout(rows) + "\n"
    names = list(dict.fromkeys(name for meter in meters for name in meter.series))
    head = ["MB"]
    for meter in meters:
        prefix = f"{meter.path.stem} " if len(meters) > 1 else ""
        head += [f"{prefix}read", f"{prefix}written"]
    rows = [head]
    for name in names:
        row = [name]
        for meter in meters:
            series = meter.series.get(name, Series())
            row += [f"{sum(series.read) / MB:,.2f}", f"{sum(series.written) / MB:,.2f}"]
        rows.append(row)
    return out + layout(rows)


def print_tables(args: argparse.Namespace) -> None:
    """Of all files."""
    print(tables([read_meter(path) for path in args.meter]), end="")


# --- Pictures --------------------------------------------------------------------------------


def pyplot() -> Any:
    """matplotlib, without a display and without what differs from run to run."""
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError("matplotlib is missing: install the package python3-matplotlib") from error
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "kintsugi", "svg.fonttype": "none",
                                "axes.grid": True, "grid.alpha": 0.3, "font.size": 9})
    from matplotlib import pyplot as found
    return found


def save(figure: Any, stem: Path) -> None:
    """Writes STEM.png and STEM.svg."""
    figure.tight_layout()
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        path = stem.with_name(stem.name + suffix)
        try:
            figure.savefig(path, dpi=DPI, metadata=metadata)
        except OSError as error:
            raise PlotError(f"cannot write {path}: {error}") from error
        print(path)


def mark_programs(axes: Any, programs: list[tuple[float, str]], shift: float) -> None:
    """A line where each program begins, and its name, if there are not too many."""
    for time, name in programs:
        axes.axvline(time + shift, color="0.6", linewidth=0.7)
        if len(programs) <= LABELS_MAX:
            axes.annotate(name, (time + shift, 1.0), xycoords=("data", "axes fraction"),
                          rotation=90, fontsize=6, va="top", ha="left", color="0.3")


def draw_writes(axes: Any, meter: Meter, chosen: list[str], reads: bool) -> None:
    """A line for each range."""
    for name in chosen:
        series = meter.series[name]
        axes.plot(series.time, series.rates(series.read if reads else series.written),
                  label=name, linewidth=1.0)
    axes.set_ylabel(f"{'read' if reads else 'written'}, MB/s")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(loc="upper right", fontsize=8)


def chosen_ranges(meter: Meter, wanted: str) -> list[str]:
    """Names to draw: those asked for, or all that have a range."""
    if not wanted:
        return [name for name in meter.series if name != OTHER] or [OTHER]
    names = wanted.split(",")
    for name in names:
        if name not in meter.series:
            raise PlotError(f"{meter.path} has no range {name}: it has {', '.join(meter.series)}")
    return names


def plot_writes(args: argparse.Namespace) -> None:
    """Figure 5."""
    meter, plt = read_meter(args.meter), pyplot()
    figure, axes = plt.subplots(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
    draw_writes(axes, meter, chosen_ranges(meter, args.ranges), args.reads)
    if args.swaps:
        swaps = read_swaps(args.swaps)
        mark_programs(axes, swaps.programs, swaps.unix_time - meter.unix_time)
    axes.set_xlabel("time, s")
    save(figure, args.output)


def plot_swaps(args: argparse.Namespace) -> None:
    """Figures 6 and 9."""
    swaps, plt = read_swaps(args.swaps), pyplot()
    shift = swaps.unix_time - read_meter(args.meter).unix_time if args.meter else 0.0
    figure, axes = plt.subplots(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
    axes.vlines([time + shift for time, _ in swaps.swaps], 0, [pairs for _, pairs in swaps.swaps],
                linewidth=1.2)
    mark_programs(axes, swaps.programs, shift)
    axes.set_ylabel("pairs of pages swapped")
    axes.set_xlabel("time, s")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    save(figure, args.output)


def plot_compare(args: argparse.Namespace) -> None:
    """Figures 7 and 8, on one scale."""
    runs, plt = [read_meter(args.enabled), read_meter(args.disabled)], pyplot()
    events = [args.swaps, args.swaps_without]
    figure, both = plt.subplots(2, 1, figsize=(WIDTH_INCHES, 2 * HEIGHT_INCHES), sharey=True)
    for axes, meter, path, title in zip(both, runs, events, ("with", "without")):
        draw_writes(axes, meter, chosen_ranges(meter, args.ranges), args.reads)
        if path:
            swaps = read_swaps(path)
            mark_programs(axes, swaps.programs, swaps.unix_time - meter.unix_time)
        axes.set_title(f"{title} page swaps", fontsize=9)
    both[1].set_xlabel("time, s")
    save(figure, args.output)
    print(tables(runs), end="")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str,
                picture: bool = True) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        if picture:
            found.add_argument("-o", "--output", type=Path, required=True, metavar="STEM",
                               help="where to: STEM.png and STEM.svg")
        return found

    def traffic_options(found: argparse.ArgumentParser) -> None:
        found.add_argument("--ranges", default="", metavar="NAME,NAME",
                           help="what to draw (default: all but what lies in no range)")
        found.add_argument("--reads", action="store_true", help="draw reads instead of writes")
        found.add_argument("--swaps", type=Path, help="mark the programs of this file of swaps")

    table = command("table", print_tables, "which range is where, and its traffic (tables 1 and 2)",
                    picture=False)
    table.add_argument("meter", type=Path, nargs="+")
    writes = command("writes", plot_writes, "rate of writes over time (figure 5)")
    writes.add_argument("meter", type=Path)
    traffic_options(writes)
    swaps = command("swaps", plot_swaps, "pages swapped over time (figures 6 and 9)")
    swaps.add_argument("swaps", type=Path)
    swaps.add_argument("--meter", type=Path, help="count time from where this file does")
    compare = command("compare", plot_compare, "with and without swaps (figures 7 and 8)")
    compare.add_argument("enabled", type=Path, metavar="WITH")
    compare.add_argument("disabled", type=Path, metavar="WITHOUT")
    traffic_options(compare)
    compare.add_argument("--swaps-without", type=Path, help="the same for the run without")
    args = parser.parse_args()
    try:
        args.run(args)
    except PlotError as error:
        print(f"meter_plots: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
