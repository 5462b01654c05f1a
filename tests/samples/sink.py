"""An app that takes whatever comes, and counts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posthog_jobs import job

if TYPE_CHECKING:
    from posthog_jobs import Meta


@job
def take(payload: Any, meta: Meta) -> None:
    meta.cache.incr("taken")


@job
async def take_nothing(meta: Meta) -> None:
    await meta.cache.incr("taken")


def on_event(event: dict[str, Any], meta: Meta) -> None:
    """See an event, and leave it."""
