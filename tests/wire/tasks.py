"""The Celery app of the fixture's workers, with a task of its own that is no job."""

from __future__ import annotations

from posthog_jobs import meta_for
from posthog_jobs.celery import app

__all__ = ["app"]


@app.task(name="plain.add", acks_late=True)  # type: ignore[untyped-decorator]
def add(first: int, second: int) -> None:
    meta_for("kettle").cache.lpush("ran", [{"what": "plain.add", "payload": first + second}])
