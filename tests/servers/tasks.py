"""The Celery app that the workers under test run; the environment says on what broker and how."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery

from posthog_jobs.broker.transport import install

if TYPE_CHECKING:
    from celery import Task

OURS = os.environ.get("TEST_TRANSPORT", "ours") == "ours"
OPTIONS = json.loads(os.environ.get("TEST_OPTIONS", "{}"))
if OURS:
    install()
    OPTIONS["posthog_jobs"] = True

app = Celery("tests", broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"))
app.conf.update(
    broker_transport_options=OPTIONS,
    task_acks_late=True,
    task_ignore_result=True,
    task_create_missing_queues=True,
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ.get("TEST_CONF", "{}")),
)
if OURS:
    app.Task.Request = "posthog_jobs.worker.requests:Request"

_notes: redis.Redis | None = None


def note(kind: str, value: Any) -> None:
    """Tell the test what happened, over a server that no test kills."""
    global _notes  # noqa: PLW0603 - one connection per process
    if _notes is None:
        _notes = redis.Redis.from_url(os.environ["TEST_NOTES"])
    _notes.rpush(f"notes:{kind}", json.dumps(value))


@app.task(name="run", bind=True)  # type: ignore[untyped-decorator]
def run(self: Task, name: Any = None) -> None:
    note("run", name if name is not None else self.request.id)


@app.task(name="noop")  # type: ignore[untyped-decorator]
def noop(payload: Any = None) -> None:
    pass


@app.task(name="clock", bind=True)  # type: ignore[untyped-decorator]
def clock(self: Task, due: float) -> None:
    note("late", time.time() - due)


@app.task(name="slow", bind=True)  # type: ignore[untyped-decorator]
def slow(self: Task, name: Any, seconds: float) -> None:
    note("started", name)
    time.sleep(seconds)
    note("run", name)


@app.task(name="hold")  # type: ignore[untyped-decorator]
def hold(name: Any) -> None:
    """Run until the test says that it may end (`Site.let_go`)."""
    note("started", name)
    assert _notes is not None
    while not _notes.exists("go"):
        time.sleep(0.01)
    note("run", name)


@app.task(name="again", bind=True, max_retries=5)  # type: ignore[untyped-decorator]
def again(self: Task, times: int) -> None:
    note("run", self.request.retries)
    if self.request.retries < times:
        raise self.retry(countdown=0.5)


@app.task(name="where", bind=True)  # type: ignore[untyped-decorator]
def where(self: Task) -> None:
    info = self.request.delivery_info
    note("run", [info["routing_key"], info["priority"], bool(info.get("redelivered"))])
