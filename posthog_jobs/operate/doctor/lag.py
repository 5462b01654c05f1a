"""How late the head of the schedule is."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from posthog_jobs.operate.doctor.findings import fail, ok, warn
from posthog_jobs.operate.doctor.workers import START

if TYPE_CHECKING:
    from posthog_jobs.broker.schedule import Forecast
    from posthog_jobs.operate.doctor.findings import Finding

#: How late the head may be before that is worth a word, and before it is a failure.
WARN_FROM: Final = timedelta(seconds=1)
FAIL_FROM: Final = timedelta(seconds=60)


def lag(coming: Forecast, *, workers: bool) -> Finding:
    """Look at how late the first job is that should have gone to its queue.

    Args:
        coming: what waits.
        workers: whether any worker runs.
    """
    found = f"{coming.total:,} wait"
    if coming.late <= WARN_FROM:
        return ok("schedule", f"{found}, and none is late")
    found += f", and the first is {coming.late.total_seconds():,.1f} s late"
    judge = fail if coming.late > FAIL_FROM else warn
    if not workers:
        return judge("schedule", f"{found}, for no worker runs", START)
    return judge(
        "schedule",
        f"{found}, though workers run",
        "Look at their logs for errors of Redis; see that the machines are not overloaded",
    )
