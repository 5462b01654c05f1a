"""Looks for a teapot (HTTP status 418), and as long as there is none, looks again later.

The app of PostHog's jobs documentation. Config: `url`, where to look; `every`, seconds between
two looks (default 30).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from posthog_jobs import Meta, PluginEvent

TEAPOT = 418


async def continue_searching_for_the_teapot(request: dict[str, str], meta: Meta) -> None:
    """Look once more; the job."""
    await look_for_the_teapot(request, meta)


jobs = {"continueSearchingForTheTeapot": continue_searching_for_the_teapot}


async def look_for_the_teapot(request: dict[str, str], meta: Meta) -> None:
    """Look, and unless the teapot is there, look again later."""
    try:
        async with httpx.AsyncClient() as client:
            response = await client.get(request["url"])
    except httpx.TransportError as error:
        answer = str(error)
    else:
        answer = f"HTTP {response.status_code}"
        if response.status_code == TEAPOT:
            meta.logger.info("found the teapot!")
            return
    every = meta.config.get("every", 30)
    await meta.jobs.continueSearchingForTheTeapot(request).run_in(every, "seconds")
    meta.logger.info("no teapot yet (%s); looking again in %g s", answer, every)


async def process_event(event: PluginEvent, meta: Meta) -> PluginEvent:
    """Start a search with each event."""
    await look_for_the_teapot({"url": meta.config["url"]}, meta)
    return event
