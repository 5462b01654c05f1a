"""The app as a project has it that runs Celery tasks of its own beside its jobs."""

from __future__ import annotations

from posthog_jobs.celery import app

__all__ = ["app"]


@app.task(name="plain.late", acks_late=True)  # type: ignore[untyped-decorator]
def late(number: int) -> float:
    return 1 / number


@app.task(name="plain.early")  # type: ignore[untyped-decorator]
def early(number: int) -> float:
    return 1 / number
