"""Reads what the recorder app (`tests.samples.recorder`) has noted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.servers.nodes import poll

if TYPE_CHECKING:
    from posthog_jobs.celery import PostHogJobs


def notes(app: PostHogJobs, what: str, app_id: str = "recorder") -> list[dict[str, Any]]:
    """Return the notes of this kind, oldest first."""
    kept: list[dict[str, Any]] = app.meta_for(app_id).cache.lrange("notes", 0, -1)
    return [note for note in reversed(kept) if note["what"] == what]


def wait_for(
    app: PostHogJobs,
    what: str,
    count: int = 1,
    *,
    app_id: str = "recorder",
    timeout: float = 60.0,
) -> list[dict[str, Any]]:
    """Return the notes of this kind as soon as there are so many."""

    def enough() -> list[dict[str, Any]] | None:
        found = notes(app, what, app_id)
        return found if len(found) >= count else None

    found: list[dict[str, Any]] = poll(f"{count} times {what}", enough, timeout)
    return found
