"""The app of the chaos run; its jobs note when they start and how they end."""

from __future__ import annotations

import asyncio
import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import current_task

from posthog_jobs import RetryError, job
from tests.chaos.notebook import Notebook
from tests.chaos.orders import RETRY_DELAYS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from posthog_jobs import Meta

    Payload = dict[str, Any]


@cache
def notebook(folder: str, pid: int) -> Notebook:
    """Return the notebook of a process; a fork takes a new one."""
    return Notebook(Path(folder) / f"{pid}-{time.time_ns()}.jsonl")


def begin(payload: Payload, meta: Meta) -> Callable[[str], None]:
    """Note that a job starts; return a function that notes how it ends."""
    assert meta.job is not None
    notes, run = notebook(meta.config["notes"], os.getpid()), uuid4().hex
    due = meta.job.due
    notes.write(
        what="start",
        run=run,
        n=payload["n"],
        attempt=meta.job.attempt,
        group=os.getpgrp(),  # the worker's, in its pool's children too
        at=time.time(),
        due=None if due is None else round(due.timestamp() * 1000),
        redelivered=bool((current_task.request.delivery_info or {}).get("redelivered")),
    )

    def end(outcome: str) -> None:
        notes.write(what=outcome, run=run, at=time.time())

    return end


def record(payload: Payload, meta: Meta) -> None:
    """Do nothing."""
    begin(payload, meta)("done")


immediate = job(name="immediate")(record)


@job
def delayed(payload: Payload, meta: Meta) -> Awaitable[None]:
    """Do nothing, in the apps' event loop."""
    end = begin(payload, meta)

    async def rest() -> None:
        await asyncio.sleep(0)
        end("done")

    return rest()


@job
def keyed(payload: Payload, meta: Meta) -> None:
    record(payload, meta)


@job
def failing(payload: Payload, meta: Meta) -> None:
    """Fail for good."""
    begin(payload, meta)("failed")
    raise ValueError(f"job {payload['n']} fails")


@job(retry=RETRY_DELAYS)
def retrying(payload: Payload, meta: Meta) -> None:
    """Fail for now, as often as the payload says."""
    assert meta.job is not None
    end = begin(payload, meta)
    if meta.job.attempt <= payload["times"]:
        end("retry")
        raise RetryError(f"job {payload['n']} is not yet done")
    end("done")


@job
def long(payload: Payload, meta: Meta) -> None:
    """Take a while."""
    end = begin(payload, meta)
    time.sleep(payload["seconds"])
    end("done")
