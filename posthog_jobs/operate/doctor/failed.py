"""Jobs that failed for good lately."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posthog_jobs.operate.doctor.findings import ok, warn

if TYPE_CHECKING:
    from posthog_jobs.operate.doctor.findings import Finding


def failed_jobs(count: int) -> Finding:
    """Look at how many jobs failed within the last hour, and are neither replayed nor discarded."""
    if not count:
        return ok("failed jobs", "none in the last hour")
    return warn(
        "failed jobs",
        f"{count:,} in the last hour",
        "Look why (celery -A posthog_jobs jobs failed), mend it, and replay them (jobs replay)",
    )
