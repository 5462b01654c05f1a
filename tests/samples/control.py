"""An app whose jobs meddle with the worker that runs them."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import celery.exceptions
from celery import current_task

from posthog_jobs import job
from tests.samples.recorder import note

if TYPE_CHECKING:
    from posthog_jobs import Meta

#: What an app can raise that Celery takes for its own.
RAISED: dict[str, BaseException] = {
    "ignore": celery.exceptions.Ignore(),
    "reject": celery.exceptions.Reject("no", requeue=False),
    "requeue": celery.exceptions.Reject("no", requeue=True),
    "retry": celery.exceptions.Retry("later"),
    "terminated": celery.exceptions.Terminated(15),
    "lost": celery.exceptions.WorkerLostError("gone"),
    "shutdown": celery.exceptions.WorkerShutdown(0),
    "terminate": celery.exceptions.WorkerTerminate(0),
    "exit": SystemExit(0),
    "close": GeneratorExit(),
}


@job(name="raise")
def raise_(payload: str, meta: Meta) -> None:
    raise RAISED[payload]


@job
async def raise_in_loop(payload: str, meta: Meta) -> None:
    await asyncio.sleep(0)
    raise RAISED[payload]


@job
def retry(meta: Meta) -> None:
    """Run again by Celery's own means."""
    assert meta.job is not None
    note(meta, "retry", attempt=meta.job.attempt)
    if meta.job.attempt == 1:
        raise current_task.retry(countdown=0.01)


@job
def shallow(meta: Meta) -> None:
    """Leave hardly any room for calls."""
    sys.setrecursionlimit(len(inspect.stack(0)) + 20)


@job
def fine(payload: Any, meta: Meta) -> None:
    note(meta, "fine", payload=payload)


@job
async def fine_in_loop(meta: Meta) -> None:
    await meta.cache.set("ran in loop", value=True)


@job
def stacks(payload: int, meta: Meta) -> None:
    """Have new threads of this process get stacks of so many bytes."""
    threading.stack_size(payload)


@job
def hold(payload: Any, meta: Meta) -> None:
    """Run until somebody says so in the cache; with the payload, no thread can be started then."""
    before = threading.stack_size(1 << 46) if payload else None
    note(meta, "hold started")
    while not meta.cache.get("let go"):
        time.sleep(0.02)
    if before is not None:
        threading.stack_size(before)
    note(meta, "hold ended")
