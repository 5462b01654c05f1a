"""The Celery app of one side, as BENCH_OURS says: an app's jobs over ours, or tasks over stock's.

`noop` does nothing with its payload; `late` notes how late it is.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery

from posthog_jobs import job
from posthog_jobs.celery import PostHogJobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs import Meta

BROKER = os.environ.get("BENCH_BROKER", "redis://127.0.0.1:1/0")
OURS = os.environ.get("BENCH_OURS") == "1"

_clients: dict[int, redis.Redis] = {}


def do_nothing(payload: object) -> None: ...


def note_lateness(due: float) -> None:
    """Keep by how many seconds the job is late; one connection per process."""
    now = time.time()
    client = _clients.setdefault(os.getpid(), redis.Redis.from_url(BROKER))
    client.rpush("late", str(now - due))


@job
def noop(payload: object, meta: Meta) -> None:
    do_nothing(payload)


@job
def late(payload: float, meta: Meta) -> None:
    note_lateness(payload)


def ours() -> tuple[PostHogJobs, Callable[..., Any]]:
    """Return our Celery app, and what sends one of its jobs."""
    celery_app = PostHogJobs(
        config_source={"broker_url": BROKER, "posthog_jobs_apps": {"bench": __name__}}
    )

    def send(name: str, payload: object, **when: Any) -> None:
        call = celery_app.meta_for("bench").jobs[name](payload)
        if "countdown" in when:
            call.run_in(when["countdown"], "seconds")
        elif "eta" in when:
            call.run_at(when["eta"])
        else:
            call.run_now()

    return celery_app, send


def stock() -> tuple[Celery, Callable[..., Any]]:
    """Return a stock Celery app of the same guarantees, and what sends one of its tasks."""
    celery_app = Celery("bench", broker=BROKER, set_as_current=False)
    celery_app.conf.update(
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
    )
    tasks = {
        name: celery_app.task(name=name, shared=False)(function)
        for name, function in (("noop", do_nothing), ("late", note_lateness))
    }

    def send(name: str, payload: object, **when: Any) -> None:
        tasks[name].apply_async((payload,), **when)

    return celery_app, send


app, send = ours() if OURS else stock()
