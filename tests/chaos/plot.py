"""The plot of a chaos run: lateness and backlog over time, and the faults."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl

mpl.use("Agg")  # no screen

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.report import Report

_COLORS: Final = {
    "kill": "tab:red",
    "hung": "black",
    "term": "tab:orange",
    "stop": "tab:purple",
    "restart": "tab:blue",
    "starve": "tab:brown",
    "refuse": "tab:green",
    "full": "tab:olive",
}
#: Seconds between two samples that belong together; the server was away in a longer gap.
_GAP: Final = 1.5


def plot(report: Report, file: Path) -> None:
    """Draw a run, as a PNG.

    Args:
        report: of the run.
        file: where to.
    """
    figure, (lateness, backlog, faults) = plt.subplots(
        3, sharex=True, figsize=(16, 9), height_ratios=[4, 4, 1.3], layout="constrained"
    )
    _lateness(lateness, report)
    _backlog(backlog, report)
    _faults(faults, [lateness, backlog], report)
    figure.suptitle(
        f"Chaos run, seed {report.seed}: {report.seconds:g} s, {report.rate:g} jobs/s, "
        f"{len(report.hits)} faults, {report.account.total('lost')} lost, "
        f"{report.account.early} early, {sum(report.account.duplicates.values())} duplicates"
    )
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def _lateness(axes: Any, report: Report) -> None:
    seconds: dict[int, list[float]] = defaultdict(list)
    for start, late in report.account.latenesses:
        seconds[int(start - report.began)].append(late * 1000)
    times = sorted(seconds)
    series = [sorted(seconds[time]) for time in times]
    for name, pick in (
        ("most", max),
        ("p99", lambda some: some[int(len(some) * 0.99)]),
        ("median", median),
    ):
        axes.plot(times, [max(0.1, pick(some)) for some in series], label=name, linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("lateness, ms")
    axes.legend(loc="upper right")


def _backlog(axes: Any, report: Report) -> None:
    samples = report.samples
    times = [sample.at - report.began for sample in samples]
    gaps = [n for n, (one, two) in enumerate(pairwise(times), 1) if two - one > _GAP]
    for name in ("waiting", "queued", "in_flight"):
        values: list[float] = [getattr(sample, name) for sample in samples]
        for gap in gaps:  # the server was away
            values[gap] = float("nan")
        axes.plot(times, values, label=name.replace("_", " "), linewidth=1)
    axes.set_yscale("symlog")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("jobs")
    axes.legend(loc="upper right")


def _faults(axes: Any, others: list[Any], report: Report) -> None:
    targets = sorted({hit.target for hit in report.hits})
    named = set()
    for hit in report.hits:
        begin = hit.begin - report.began
        length = max(0.3, (hit.end or hit.begin) - hit.begin)
        label = None if hit.kind in named else hit.kind
        named.add(hit.kind)
        color = _COLORS[hit.kind]
        axes.barh(targets.index(hit.target), length, 0.7, begin, color=color, label=label)
        for other in others:
            other.axvline(begin, color=color, alpha=0.2, linewidth=0.7)
    axes.set_yticks(range(len(targets)), targets)
    axes.set_xlabel("seconds")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.4), ncols=len(_COLORS))
