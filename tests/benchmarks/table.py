"""The benchmarks: what each measures, in which unit, and what it must reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.servers.processes import until

from .bench import bench, rate

if TYPE_CHECKING:
    from .bench import Bench

SOLO: Final = ("-P", "solo")
PREFORK: Final = ("-P", "prefork", "-c", "2")

Measure = Callable[[bool], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One row of the table.

    Attributes:
        unit: of both figures.
        target: what must be reached, in words.
        measure: called with True for ours and False for stock.
        both: measures ours and stock at once, instead of `measure`.
        rounds: how often each side is measured, in turns; medians count.
    """

    unit: str
    target: str
    measure: Measure | None = None
    both: Callable[[], tuple[float, float]] | None = None
    rounds: int = 3

    def sides(self) -> tuple[float, float]:
        """Measure ours and stock once each."""
        if self.both is not None:
            return self.both()
        assert self.measure is not None
        return self.measure(True), self.measure(False)


def drain(
    ours_args: tuple[str, ...], stock_args: tuple[str, ...], *, ours_workers: int = 1, count: int
) -> Measure:
    """How fast workers empty a queue. Stock gets a quarter of the jobs, for it takes longer."""

    def measure(ours: bool) -> float:
        number = count if ours else count // 4
        with bench(ours=ours) as found:
            found.fill(number)
            for _ in range(ours_workers if ours else 1):
                found.worker(*(ours_args if ours else stock_args))
            return rate(found, number)

    return measure


def publish(when: str) -> Callable[[], tuple[float, float]]:
    """How fast one producer sends, one job at a time: ours and stock's in turns, 100 each."""

    def measure() -> tuple[float, float]:
        with bench(ours=True) as found:
            mine, theirs = found.run(
                "from statistics import median\n"
                "sides = ours()[1], stock()[1]\n"
                "def rate(send):\n"
                "    begun = time.perf_counter()\n"
                f"    for _ in range(100): send('noop', PAYLOAD, {when})\n"
                "    return 100 / (time.perf_counter() - begun)\n"
                "for side in sides: rate(side)\n"
                "rows = [[rate(side) for side in sides] for _ in range(40)]\n"
                "result = [median(row[n] for row in rows) for n in (0, 1)]"
            )
            return mine, theirs

    return measure


def lateness(quantile: float) -> Measure:
    """How late 500 jobs over 10 s start, in ms; an early one fails the run."""

    def measure(ours: bool) -> float:
        with bench(ours=ours) as found:
            found.worker("-P", "solo")
            found.warm_up()
            found.run(
                "start = time.time() + 3\n"
                "for n in range(500):\n"
                "    due = start + n / 50\n"
                "    send('late', due, eta=datetime.fromtimestamp(due, UTC))"
            )
            until(lambda: found.redis.llen("late") == 500, seconds=40)
            late = sorted(float(value) * 1000 for value in found.redis.lrange("late", 0, -1))
            assert late[0] >= 0 or not ours, f"early by {-late[0]} ms"
            return late[min(499, int(quantile * 500))]

    return measure


def burst(ours: bool) -> float:
    """Seconds until 5,000 jobs that are due at one instant are through.

    Ours on the solo pool; stock on prefork 2, for on solo it takes minutes.
    """
    with bench(ours=ours) as found:
        found.worker(*(SOLO if ours else PREFORK))
        found.warm_up()
        due = time.time() + 12
        found.run(
            f"due = datetime.fromtimestamp({due}, UTC)\n"
            "for n in range(5000): send('noop', PAYLOAD, eta=due)"
        )
        if time.time() > due:
            raise RuntimeError("this machine is too slow to send 5,000 jobs in 12 s")
        until(lambda: time.time() >= due)
        places = ("celery", "unacked", "posthog_jobs:waiting")
        until(
            lambda: (
                not found.redis.exists(*places) and not found.redis.keys("posthog_jobs:inflight:*")
            ),
            seconds=120,
        )
        return time.time() - due


def worker_memory(ours: bool) -> float:
    """Bytes that a worker grows by for each job that waits: 100,000 for ours, 10,000 for stock."""
    count = 100_000 if ours else 10_000
    with bench(ours=ours) as found:
        worker = found.worker("-P", "solo")
        found.warm_up()
        before = worker.memory_info().rss
        found.run(f"for n in range({count}): send('noop', PAYLOAD, countdown=3600)")
        until(lambda: not found.redis.exists("celery"), seconds=120)
        return float(worker.memory_info().rss - before) / count


def broker_memory(ours: bool) -> float:
    """Bytes of Redis for each job that waits."""
    with bench(ours=ours) as found:
        found.run("send('noop', PAYLOAD, countdown=3600)")
        before = found.redis.info("memory")["used_memory"]
        found.run("for n in range(10000): send('noop', PAYLOAD, countdown=3600)")
        return float(found.redis.info("memory")["used_memory"] - before) / 10_000


#: What the benchmarks of installed apps install, and how many jobs each of them exports.
INSTALLED, EXPORTED = 200, 5


def with_apps(measure: Callable[[Bench], float]) -> Callable[[], tuple[float, float]]:
    """Measure ours with many installed apps; beside it, for stock's, ours with none."""

    def both() -> tuple[float, float]:
        figures = []
        for count in (INSTALLED, 0):
            with bench(ours=True) as found, TemporaryDirectory(prefix="pj") as folder:
                for number in range(count):
                    jobs = "".join(f"@job\ndef job{n}(meta): ...\n" for n in range(EXPORTED))
                    file = Path(folder, f"app{number}.py")
                    file.write_text(f"from posthog_jobs import job\n{jobs}", "utf-8")
                found.run(
                    f"for n in range({count}):\n"
                    f"    ours()[0].apps.install(f'{folder}/app{{n}}.py', id=f'app{{n}}')"
                )
                figures.append(measure(found))
        return figures[0], figures[1]

    return both


def start_time(found: Bench) -> float:
    """Seconds from the start of a worker to its first job."""
    found.run("send('late', time.time())")
    begun = time.monotonic()
    found.worker(*SOLO)
    until(lambda: found.redis.llen("late"), seconds=60)
    return time.monotonic() - begun


def drain_rate(found: Bench) -> float:
    """Jobs per second of one solo worker."""
    found.fill(12_000)
    found.worker(*SOLO)
    return rate(found, 12_000)


BENCHMARKS: Final = {
    "drain-solo": Benchmark(unit="jobs/s", target="≥ 6 ×", measure=drain(SOLO, SOLO, count=12_000)),
    "drain-two-solo": Benchmark(
        unit="jobs/s",
        target="≥ 9 × stock prefork 2",
        measure=drain(SOLO, PREFORK, ours_workers=2, count=16_000),
    ),
    "drain-two-threads-4": Benchmark(
        unit="jobs/s",
        target="≥ 9 × stock prefork 2",
        measure=drain(("-P", "threads", "-c", "4"), PREFORK, ours_workers=2, count=16_000),
    ),
    "drain-threads-8": Benchmark(
        unit="jobs/s",
        target="≥ 3.5 ×",
        measure=drain(("-P", "threads", "-c", "8"), ("-P", "threads", "-c", "8"), count=12_000),
    ),
    "drain-prefork-2": Benchmark(
        unit="jobs/s", target="≥ 1.4 ×", measure=drain(PREFORK, PREFORK, count=8_000)
    ),
    "publish-now": Benchmark(unit="jobs/s", target="≥ 1.2 ×", both=publish(""), rounds=1),
    "publish-later": Benchmark(
        unit="jobs/s",
        target="≥ 1.2 ×",
        both=publish("countdown=3600"),
        rounds=1,
    ),
    "lateness-p99": Benchmark(unit="ms", target="≤ 10", measure=lateness(0.99), rounds=1),
    "lateness-max": Benchmark(unit="ms", target="≤ 50", measure=lateness(1), rounds=1),
    "burst-5000": Benchmark(unit="s", target="≤ 2.5", measure=burst, rounds=1),
    "worker-memory": Benchmark(
        unit="bytes/job", target="0 (≤ 20)", measure=worker_memory, rounds=1
    ),
    "start-200-apps": Benchmark(
        unit="s", target="≤ 3 more than with none", both=with_apps(start_time), rounds=3
    ),
    "drain-200-apps": Benchmark(
        unit="jobs/s", target="as with none", both=with_apps(drain_rate), rounds=3
    ),
    "broker-memory": Benchmark(unit="bytes/job", target="≤ 1.1 ×", measure=broker_memory, rounds=1),
}
