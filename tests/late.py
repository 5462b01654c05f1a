"""The Celery app of a worker that meets every job only after its pool has forked."""

from __future__ import annotations

from celery import signals

from posthog_jobs.celery import app

__all__ = ["app"]


def forget_jobs(**_: object) -> None:
    """Undo what the worker has registered, just before it makes its pool."""
    for name in [name for name in app.tasks if name.startswith("posthog_jobs.recorder.")]:
        app.tasks.unregister(name)


signals.worker_init.connect(forget_jobs)
