"""The app of the chaos run; its jobs note when they start and how they end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import current_task
from celery.signals import task_received

from posthog_jobs import RetryError, job
from tests.chaos.notebook import Notebook
from tests.chaos.orders import RETRY_DELAYS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from posthog_jobs import Meta

    Payload = dict[str, Any]


#: The size of a stack for which no machine has the memory.
TOO_LARGE = 1 << 46


def starve(**_: object) -> None:
    """See to it that this process can start no thread any more."""
    threading.stack_size(TOO_LARGE)


if time.time() < float(os.environ.get("CHAOS_STARVED_UNTIL", "0")):
    task_received.connect(starve, weak=False)  # which comes just before it is for the pool


@cache
def notebook(folder: str, pid: int) -> Notebook:
    """Return the notebook of a process; a fork takes a new one."""
    return Notebook(Path(folder) / f"{pid}-{time.time_ns()}.jsonl")


def is_redelivered() -> bool:
    """Whether the message of the task that this thread runs had been delivered before."""
    return bool((current_task.request.delivery_info or {}).get("redelivered"))


def begin(
    payload: Payload, meta: Meta, *, redelivered: bool | None = None
) -> Callable[[str], None]:
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
        redelivered=is_redelivered() if redelivered is None else redelivered,
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
    redelivered = is_redelivered()

    async def run() -> None:
        end = begin(payload, meta, redelivered=redelivered)
        await asyncio.sleep(0)
        end("done")

    return run()


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
