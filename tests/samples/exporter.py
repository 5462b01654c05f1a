"""An app that notes what it exports, and fails as its config says."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from posthog_jobs import RetryError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from posthog_jobs import Meta


def process_event(event: dict[str, Any], meta: Meta) -> dict[str, Any]:
    """Go on from the number `stops_at` when somebody says so in the cache."""
    stops = event["properties"]["number"] == meta.config.get("stops_at")
    while stops and not meta.cache.get("go on"):
        time.sleep(0.02)
    return event


def export_events(events: list[dict[str, Any]], meta: Meta) -> Awaitable[None]:
    """Note the events' numbers; `fails` says how it goes, for as many times as `times`."""
    if meta.config.get("fails") == "block":  # here, and not in the loop that others need
        meta.cache.set("blocks", value=True)
        time.sleep(60)
    return export(events, meta)


async def export(events: list[dict[str, Any]], meta: Meta) -> None:
    attempt = await meta.cache.incr("attempts")
    numbers = [event["properties"]["number"] for event in events]
    events.clear()
    await meta.cache.lpush(
        "notes",
        [{"what": "export", "numbers": numbers, "attempt": attempt, "pid": os.getpid()}],
    )
    if attempt > meta.config.get("times", 10**9):
        return
    match meta.config.get("fails"):
        case "retry":
            raise RetryError("not now")
        case "raise":
            raise ValueError("this export fails")
        case "exit":
            sys.exit("this app exits")
