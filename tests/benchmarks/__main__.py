"""`python -m tests.benchmarks [NAME…] [--json FILE]`: ours beside stock Celery, in turns."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

from .table import BENCHMARKS


def main() -> None:
    """Run the benchmarks that are named, or all, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    if unknown := set(args.names) - BENCHMARKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    rows = []
    print("| what | unit | ours | stock | ratio | must reach |\n|---|---|---|---|---|---|")
    for name in args.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        ours: list[float] = []
        stock: list[float] = []
        for _ in range(benchmark.rounds):  # in turns, so that noise hits both
            for figures, figure in zip((ours, stock), benchmark.sides(), strict=True):
                figures.append(figure)
        mine, theirs = median(ours), median(stock)
        ratio = mine / theirs if theirs else None
        rows.append(
            {"name": name, "unit": benchmark.unit, "ours": mine, "stock": theirs, "ratio": ratio}
        )
        shown = "–" if ratio is None else f"{ratio:.2f}"
        print(
            f"| {name} | {benchmark.unit} | {mine:,.1f} | {theirs:,.1f} | {shown} "
            f"| {benchmark.target} |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
