"""The same tasks over our transport or stock's, as BENCH_OURS says."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

OURS = os.environ.get("BENCH_OURS") == "1"
if OURS:
    from posthog_jobs.transport import install

    install()

app = Celery("bench", broker=os.environ.get("BENCH_BROKER", "redis://127.0.0.1:1/0"))
app.conf.update(
    broker_transport_options={"posthog_jobs": True} if OURS else {},
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_ignore_result=True,
)
if OURS:
    app.Task.Request = "posthog_jobs.transport.request:Request"


@app.task(name="noop")  # type: ignore[untyped-decorator]
def noop(payload: object) -> None:
    pass


_redis: redis.Redis | None = None


@app.task(name="late")  # type: ignore[untyped-decorator]
def late(due: float) -> None:
    now = time.time()
    global _redis  # noqa: PLW0603 - one connection per process
    if _redis is None:
        _redis = redis.Redis.from_url(os.environ["BENCH_BROKER"])
    _redis.rpush("late", str(now - due))
