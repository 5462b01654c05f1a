"""An app whose hooks and jobs note in `meta.cache` what happens to them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import current_task

from posthog_jobs import RetryError, job

if TYPE_CHECKING:
    from posthog_jobs import Meta, PluginEvent


def note(meta: Meta, what: str, **details: Any) -> None:
    """Keep what happened, when, and in which process."""
    details |= {"what": what, "at": time.time(), "pid": os.getpid()}
    meta.cache.lpush("notes", [details])


def setup_plugin(meta: Meta) -> None:
    meta.global_["ready"] = True
    note(meta, "setup_plugin")


def teardown_plugin(meta: Meta) -> None:
    note(meta, "teardown_plugin", config=dict(meta.config))


def process_event(event: PluginEvent, meta: Meta) -> PluginEvent | None:
    """Trigger the job that the event names, in the way that it names."""
    properties = event["properties"]
    if "trigger" in properties:
        call = meta.jobs[properties["trigger"]](properties.get("payload"))
        how, *arguments = properties.get("how", ["run_now"])
        getattr(call, how)(*arguments)
    if event["event"] == "drop":
        return None
    return {**event, "properties": {**properties, "seen_by": meta.app_id}}


async def on_event(event: PluginEvent, meta: Meta) -> None:
    await asyncio.sleep(0)
    count = await meta.cache.incr(f"on_event {event['event']}")
    await meta.cache.lpush(
        "notes", [{"what": "on_event", "event": event, "count": count, "at": time.time()}]
    )
    if event["event"] == "retry me" and count == 1:
        raise RetryError("not now")


@job
def record(payload: object, meta: Meta) -> None:
    assert meta.job is not None
    details = {"payload": payload, "due": meta.job.due, "config": dict(meta.config)}
    note(meta, "record", ready=meta.global_["ready"], **details)


@job
def record_nothing(meta: Meta) -> None:
    note(meta, "record_nothing")


@job(name="recordAsync")
async def record_async(payload: object, meta: Meta) -> None:
    loop = id(asyncio.get_running_loop())
    thread = threading.current_thread().name
    meta.cache.lpush(  # on purpose not awaited
        "notes",
        [
            {
                "what": "recordAsync",
                "payload": payload,
                "loop": loop,
                "thread": thread,
                "pid": os.getpid(),
                "at": time.time(),
            }
        ],
    )


@job
async def chain(payload: int, meta: Meta) -> None:
    """Trigger itself until the payload is 0, without awaiting that."""
    await meta.cache.lpush("notes", [{"what": "chain", "payload": payload, "at": time.time()}])
    if payload > 0:
        meta.jobs.chain(payload - 1).run_now()


@job
def slow(payload: dict[str, Any], meta: Meta) -> None:
    note(meta, "slow started")
    time.sleep(payload["seconds"])
    note(meta, "slow ended")


@job
def hold(payload: object, meta: Meta) -> None:
    """Run until somebody says in the cache that it may end; the next one ends at once then."""
    note(meta, "hold started")
    while not meta.cache.get("let go"):
        time.sleep(0.02)
    note(meta, "hold ended")


@job
def fail(payload: object, meta: Meta) -> None:
    note(meta, "fail")
    raise ValueError("this job fails")


@job
def fail_once(payload: object, meta: Meta) -> None:
    """Fail for now at the first attempt; a payload may say for how long."""
    assert meta.job is not None
    attempt = meta.cache.incr(f"fail_once {payload}")
    note(meta, "fail_once", attempt=attempt, due=meta.job.due)
    if attempt == 1:
        raise RetryError("not now", delay=payload["delay"] if isinstance(payload, dict) else None)


@job
def retry_by_celery(payload: float, meta: Meta) -> None:
    """Have Celery run it again, in so many seconds from when somebody says in the cache."""
    assert meta.job is not None
    late = None if meta.job.due is None else time.time() - meta.job.due.timestamp()
    note(meta, "retry_by_celery", attempt=meta.job.attempt, key=meta.job.key, late=late)
    while not meta.cache.get("let go"):
        time.sleep(0.02)
    if meta.job.attempt == 1:
        current_task.retry(countdown=payload)


@job
def fail_at_gate(payload: str, meta: Meta) -> None:
    """Fail for now, as soon as there is a file of this name."""
    assert meta.job is not None
    note(meta, "fail_at_gate", attempt=meta.job.attempt, gate=os.path.basename(payload))  # noqa: PTH119
    while not os.path.exists(payload):  # noqa: PTH110
        time.sleep(0.01)
    raise RetryError("not now")


@job
def retry_at_gate(payload: str, meta: Meta) -> None:
    """Have Celery run it again, as soon as there is a file of this name."""
    assert meta.job is not None
    note(meta, "retry_at_gate", attempt=meta.job.attempt, gate=os.path.basename(payload))  # noqa: PTH119
    while not os.path.exists(payload):  # noqa: PTH110
        time.sleep(0.01)
    if meta.job.attempt == 1:
        current_task.retry(countdown=0.01)


@job
def wrong_job(meta: Meta) -> None:
    """Trigger a job that the app does not export."""
    note(meta, "wrong_job")
    meta.jobs.no_such_job()
