"""Exports each event to an HTTP endpoint, and retries a failed request later and later.

Config: `url`, where events are posted to; `attempts`, how often a request is tried (default 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from posthog_jobs import Meta, PluginEvent

#: Seconds before the second attempt; each later one waits twice as long.
FIRST_DELAY = 3


async def on_event(event: PluginEvent, meta: Meta) -> None:
    """Export an event once it has been processed."""
    await export({"event": event, "attempt": 1}, meta)


async def retry_request(request: dict[str, Any], meta: Meta) -> None:
    """Export an event again; the job."""
    await export(request, meta)


jobs = {"retryRequest": retry_request}


async def export(request: dict[str, Any], meta: Meta) -> None:
    """Post an event, and schedule the next attempt if that fails."""
    failure = await post(meta.config["url"], request["event"])
    if failure is None:
        await meta.cache.incr("exported")
        return
    attempt = request["attempt"]
    if attempt >= meta.config.get("attempts", 10):
        meta.logger.error("giving up after %d attempts: %s", attempt, failure)
        return
    delay = FIRST_DELAY * 2 ** (attempt - 1)
    meta.logger.warning("attempt %d failed (%s); trying again in %d s", attempt, failure, delay)
    again = {"event": request["event"], "attempt": attempt + 1}
    await meta.jobs.retryRequest(again).run_in(delay, "seconds")


async def post(url: str, event: PluginEvent) -> str | None:
    """Post an event; return why that failed, if it did."""
    try:
        async with httpx.AsyncClient(timeout=10) as client:
            response = await client.post(url, json=event)
    except httpx.TransportError as error:
        return str(error) or type(error).__name__
    return None if response.is_success else f"HTTP {response.status_code}"
