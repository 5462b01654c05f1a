"""`python -m tests.chaos`: real workers and a real server under faults, every job accounted for."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import ChaosRun


def main() -> None:
    """Run, report, and exit with 1 unless every job is accounted for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long (default: 600)")
    parser.add_argument("--rate", type=float, default=100, help="jobs per second (default: 100)")
    parser.add_argument("--seed", type=int, help="of jobs and faults (default: a new one)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    args = parser.parse_args()
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'posthog-jobs[chaos]'")
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = ChaosRun(folder, seed=seed, seconds=args.seconds, rate=args.rate).report()
    print(report)
    if args.json:
        args.json.write_text(json.dumps(report.figures) + "\n", "utf-8")
    if args.plot:
        from tests.chaos.plot import plot  # noqa: PLC0415  # matplotlib is optional, and slow

        plot(report, args.plot)
    if report.problems:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
