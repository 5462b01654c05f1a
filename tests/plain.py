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


class MuteError(Exception):
    """It cannot tell what is wrong."""

    def __str__(self) -> str:
        raise TypeError("no text")


@app.task(name="plain.mute", acks_late=True)  # type: ignore[untyped-decorator]
def mute() -> None:
    raise MuteError
