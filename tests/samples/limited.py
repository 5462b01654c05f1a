"""An app whose jobs say how long they may take, and how often they are retried."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import TYPE_CHECKING

from posthog_jobs import RetryError, job
from tests.samples.recorder import note

if TYPE_CHECKING:
    from posthog_jobs import Meta


def on_event(event: object, meta: Meta) -> None:
    note(meta, "on_event", job=meta.job)


@job(retry=[0.2, 60], time_limit=20)
def flaky(payload: str, meta: Meta) -> None:
    """Raise RetryError until the third attempt, each time with the payload in the error."""
    assert meta.job is not None
    seen = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: seen.append(context.run(lambda: meta.job)))
    thread.start()
    thread.join()
    assert seen == [meta.job]
    describe("flaky", meta)
    if meta.job.attempt < 3:
        raise RetryError(f"no luck with {payload}", delay=0.3 if meta.job.attempt == 2 else None)


@job
async def side_by_side(payload: str, meta: Meta) -> None:
    """Tell twice which job it is, with others running in between."""
    before = meta.job
    await asyncio.sleep(0.05)
    assert meta.job is before
    await asyncio.to_thread(describe, "side_by_side", meta, payload)


@job(retry=[3600])
def later(payload: str, meta: Meta) -> None:
    raise RetryError(f"no luck with {payload}")


@job(time_limit=2.5)
def too_slow(meta: Meta) -> None:
    describe("too_slow", meta)
    time.sleep(3600 if meta.config["pool"] == "prefork" else 3)
    describe("too_slow went on", meta)


@job(time_limit=0.5)
async def too_slow_async(meta: Meta) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.to_thread(describe, "cancelled", meta)


def describe(what: str, meta: Meta, payload: object = None) -> None:
    running = meta.job
    assert running is not None
    note(
        meta,
        what,
        payload=payload,
        id=running.id,
        attempt=running.attempt,
        max_attempts=running.max_attempts,
        due=running.due,
        key=running.key,
    )
