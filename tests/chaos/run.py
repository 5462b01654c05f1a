"""One chaos run: the site, the producer and the storm put together, until all is accounted for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tests.chaos import backlog
from tests.chaos.ledger import account
from tests.chaos.orders import orders
from tests.chaos.report import Report
from tests.chaos.runs import runs, sends
from tests.chaos.site import Site
from tests.chaos.storm import Storm, faults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.backlog import Sample

#: Seconds between two looks at what is to be done, and at the backlog.
_TICK: Final = 0.02
_SAMPLE: Final = 0.5
#: Seconds without any progress after which the backlog counts as stuck; a slow machine is not.
_STUCK: Final = 90.0


class ChaosRun:
    """A run, from its start to its report."""

    def __init__(self, folder: Path, *, seed: int, seconds: float, rate: float) -> None:
        """Plan a run.

        Args:
            folder: an empty one, for notes and logs.
            seed: what jobs and faults are drawn from.
            seconds: how long the storm is.
            rate: jobs per second.
        """
        self._folder = folder
        self._seed, self._seconds, self._rate = seed, seconds, rate
        self._samples: list[Sample] = []
        self._problems: set[str] = set()
        self._next_sample = 0.0
        self._began = time.time()
        self._storm: Storm | None = None

    def report(self) -> Report:
        """Run, end all that was started, and account; Ctrl-C ends the run before its time."""
        site = Site(self._folder)
        drained, interrupted = None, False
        try:
            try:
                drained = self._run(site)
            except KeyboardInterrupt:
                interrupted = True
            site.stop_producer()
            site.stop_workers()
            if not site.is_up():
                site.server.kill()
                site.server.start()
                while not site.is_up():
                    time.sleep(_TICK)
            remains = backlog.remains(site.patient_redis)
        finally:
            site.close()
        hits = [] if self._storm is None else self._storm.hits
        found = account(
            orders=orders(self._seed, self._seconds, self._rate),
            sends=sends(self._folder / "sent"),
            runs=runs(self._folder / "notes"),
            remains=remains,
            hits=hits,
        )
        found.problems += sorted(self._problems)
        return Report(
            seed=self._seed,
            seconds=self._seconds,
            rate=self._rate,
            began=self._began,
            drained=drained,
            account=found,
            hits=hits,
            samples=self._samples,
            interrupted=interrupted,
            folder=str(self._folder),
        )

    def _run(self, site: Site) -> float | None:
        """Let the storm rage, then wait until the backlog is worked off; how long that took."""
        site.server.ready()
        site.start_workers()
        self._began = time.time() + 2  # while the producer starts
        options = {"seed": self._seed, "seconds": self._seconds, "rate": self._rate}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        site.start_producer(*words, "--began", self._began)
        self._storm = storm = Storm(site, faults(self._seed, self._seconds), self._began)
        end = self._began + self._seconds
        self._tick_while(site, lambda: time.time() < end)
        storm.is_over = True
        self._tick_while(site, lambda: bool(storm.step() or site.is_producing()))
        return end_of_backlog - end if (end_of_backlog := self._drain(site)) else None

    def _drain(self, site: Site) -> float | None:
        """Wait until nothing is left to do; when that was, or None if it got stuck."""
        moved, last = time.time(), (0, 0)
        while True:
            done = sum(path.stat().st_size for path in (self._folder / "notes").iterdir())
            left = backlog.unfinished(site.patient_redis)
            if left == 0:
                return time.time()
            if (done, left) != last:
                moved, last = time.time(), (done, left)
            elif time.time() - moved > _STUCK:
                return None
            until = time.time() + _SAMPLE
            self._tick_while(site, lambda: time.time() < until)  # noqa: B023  # called at once

    def _tick_while(self, site: Site, condition: Callable[[], bool]) -> None:
        storm = self._storm
        assert storm is not None
        while condition():
            storm.step()
            site.is_producing()  # raises if it broke
            if time.time() >= self._next_sample:
                self._next_sample = time.time() + _SAMPLE
                if (sample := backlog.sample(site.redis)) is not None:
                    self._samples.append(sample)
                for key in backlog.doubled_keys(site.redis):
                    self._problems.add(f"two jobs waited under the key {key}")
            time.sleep(_TICK)
