# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw what `kintsugi sim --json` wrote: bytes to each tier over time, and swaps.

    kintsugi sim TRACE --json | /usr/bin/python3 sim_plot.py FILE.svg|FILE.png

A row a workload and policy: bytes a second that the guest wrote to the fast and to the slow tier
(P4's figures 5, 7 and 8), and below, pairs swapped at each decision (its figures 6 and 9).
"""

import json
import sys

MB = 1e6


def draw(reports, path):
    """One column of axes for each workload, two rows for each policy."""
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    policies = max(len(report["results"]) for report in reports)
    figure, axes = pyplot.subplots(
        2 * policies, len(reports), squeeze=False, sharex="col",
        figsize=(6 * len(reports), 3 * policies),
        gridspec_kw={"height_ratios": [3, 1] * policies})
    for column, report in enumerate(reports):
        for row, result in enumerate(report["results"]):
            scans = result["scans"]
            seconds = range(1, len(scans) + 1)
            top, bottom = axes[2 * row][column], axes[2 * row + 1][column]
            top.plot(seconds, [scan["fast_bytes"] / MB for scan in scans], label="fast tier")
            top.plot(seconds, [scan["slow_bytes"] / MB for scan in scans], label="slow tier")
            top.set_title(f"{report['workload']}, {result['policy']}: "
                          f"{result['slow_bytes_with_copies'] / MB:.0f} MB to the slow tier",
                          fontsize=9)
            top.set_ylabel("MB a scan")
            top.legend(fontsize=8)
            bottom.bar(seconds, [scan["swaps"] for scan in scans], width=1.0, color="tab:gray")
            bottom.set_ylabel("swaps")
        axes[-1][column].set_xlabel("scan")
    figure.tight_layout()
    # Without a date, the same figures give the same file.
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main():
    """Read the report from standard input, draw it to the file named."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith((".svg", ".png")):
        print("usage: sim_plot.py FILE.svg|FILE.png < REPORT.json", file=sys.stderr)
        return 2
    draw(json.load(sys.stdin), sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
