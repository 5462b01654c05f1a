"""An app with the three hooks that run by the clock, which do what their config says."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from posthog_jobs import RetryError, job
from tests.samples.recorder import note

if TYPE_CHECKING:
    from posthog_jobs import Meta


def setup_plugin(meta: Meta) -> None:
    if meta.config.get("setup") == "fails":
        raise ValueError("no url")


def run_every_minute(meta: Meta) -> None:
    tick("minute", meta)


async def runEveryHour(meta: Meta) -> None:  # noqa: N802  # PostHog's spelling
    await asyncio.to_thread(tick, "hour", meta)


def run_every_day(meta: Meta) -> None:
    tick("day", meta)


def tick(hook: str, meta: Meta) -> None:
    note(meta, hook, job=meta.job)
    time.sleep(meta.config.get("seconds", 0))
    note(meta, f"{hook} ended")
    if meta.config.get("raises") == "RetryError":
        raise RetryError("not now", delay=meta.config.get("delay"))
    if meta.config.get("raises"):
        raise ValueError("this hook fails")


@job
def alive(meta: Meta) -> None:
    note(meta, "alive")
