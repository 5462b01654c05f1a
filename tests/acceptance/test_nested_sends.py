"""What is sent while another message is being sent arrives, and is told apart from that."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from celery import signals
from kombu import Exchange, Queue

from posthog_jobs.celery import PostHogJobs
from tests.conftest import APPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from tests.servers.nodes import RedisProcess

    Send = Callable[[PostHogJobs], str]


def send_job(app: PostHogJobs) -> str:
    return app.meta_for("recorder").jobs.record(1).run_now().id


def send_later(app: PostHogJobs) -> str:
    return app.meta_for("recorder").jobs.record(1).run_in(1, "hour").id


def send_plain(app: PostHogJobs) -> str:
    sent: str = app.send_task("plain").id
    return sent


SENDS = [send_job, send_later, send_plain]


def arrived(server: RedisProcess, queue: str = "celery") -> list[str]:
    """Return the id of each message that is in the queue or waits."""
    assert server.client is not None
    queued = [json.loads(raw)["headers"]["id"] for raw in server.client.lrange(queue, 0, -1)]
    waiting = server.client.hkeys("posthog_jobs:waiting")
    return sorted([*queued, *waiting])


class Once:
    """Calls a function from within a send, and not again from within that."""

    def __init__(self, function: Callable[[], str]) -> None:
        self._function = function
        self._is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)
        self.returned: list[str] = []

    def __call__(self, *_: Any, **__: Any) -> None:
        if not self._is_inside.get():
            token = self._is_inside.set(True)
            try:
                self.returned.append(self._function())
            finally:
                self._is_inside.reset(token)


@contextmanager
def within(where: str, app: PostHogJobs, call: Callable[..., None]) -> Iterator[None]:
    """Have a function called in the middle of each send."""
    if where == "task_routes":
        app.conf.task_routes = [lambda *_, **__: call()]
        yield
        return
    hook = getattr(signals, where)
    hook.connect(call, weak=False)
    try:
        yield
    finally:
        hook.disconnect(call)


@pytest.mark.parametrize("inner", SENDS)
@pytest.mark.parametrize("outer", SENDS)
@pytest.mark.parametrize("where", ["before_task_publish", "after_task_publish", "task_routes"])
def test_a_handler_that_sends(
    idle_app: PostHogJobs, idle_server: RedisProcess, where: str, outer: Send, inner: Send
) -> None:
    """Each message arrives once, and each handle is of its own."""
    call = Once(lambda: inner(idle_app))
    with within(where, idle_app, call):
        sent = [outer(idle_app), outer(idle_app)]

    assert len(call.returned) == 2
    assert arrived(idle_server) == sorted({*sent, *call.returned})
    assert len({*sent, *call.returned}) == 4


def test_a_handler_that_sends_under_a_key(idle_app: PostHogJobs) -> None:
    """The outcome of a nested send is not taken for that of the send around it."""
    jobs = idle_app.meta_for("recorder").jobs
    call = Once(lambda: jobs.record("inner", key="inner").run_in(1, "hour").id)

    with within("after_task_publish", idle_app, call):
        outer = jobs.record("outer", key="outer").run_in(2, "hours")

    waiting = {job.id: job.key for job in idle_app.schedule.list().jobs}
    assert waiting == {outer.id: "outer", call.returned[0]: "inner"}


def test_in_a_running_loop(idle_app: PostHogJobs, idle_server: RedisProcess) -> None:
    """A handler sees the trace of the coroutine that sends, and may await a send of its own."""
    trace: ContextVar[str] = ContextVar("trace", default="none")
    jobs = idle_app.meta_for("recorder").jobs
    seen = []

    async def send(name: str) -> str:
        trace.set(name)
        handle = jobs.record(name).run_now()
        await handle
        return handle.id

    def inner() -> str:
        seen.append(trace.get())
        return asyncio.run(send("inner"))

    call = Once(inner)
    with within("before_task_publish", idle_app, call):
        outer = asyncio.run(send("outer"))

    assert seen == ["outer"]
    assert arrived(idle_server) == sorted([outer, *call.returned])


def test_more_threads_than_connections_in_the_pool(idle_server: RedisProcess) -> None:
    """Sends that each wait for one within do not wait for each other's connection."""
    app = PostHogJobs(
        config_source={
            "broker_url": idle_server.url,
            "posthog_jobs_apps": APPS,
            "broker_pool_limit": 2,
        }
    )
    assert idle_server.client is not None
    idle_server.client.flushall()
    together = threading.Barrier(2)

    def inner() -> str:
        together.wait(30)
        return send_plain(app)

    with within("before_task_publish", app, Once(inner)), ThreadPoolExecutor(2) as threads:
        list(threads.map(send_plain, [app, app]))

    assert len(arrived(idle_server)) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
@pytest.mark.parametrize("outer", SENDS)
def test_a_signal_at_any_step_of_a_send(
    idle_app: PostHogJobs, idle_server: RedisProcess, outer: Send
) -> None:
    """A signal handler that sends loses nothing, and hangs nowhere, wherever it interrupts."""
    outer(idle_app)  # what is made once, as connections are, is there from now on
    assert idle_server.client is not None
    idle_server.client.flushall()
    sent: list[str] = []
    ours = Once(lambda: send_job(idle_app))
    before = signal.signal(signal.SIGUSR1, ours)
    try:
        step, is_over = 0, False
        while not is_over:
            step += 1
            steps = iter(range(step))

            def interrupt(frame: FrameType, event: str, _: object) -> None:
                if event in ("call", "c_call") and next(steps, None) is None:  # noqa: B023
                    sys.setprofile(None)
                    signal.raise_signal(signal.SIGUSR1)

            sys.setprofile(interrupt)
            sent.append(outer(idle_app))
            is_over = sys.getprofile() is not None
            sys.setprofile(None)
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGUSR1, before)

    assert len(ours.returned) >= 100
    assert arrived(idle_server) == sorted([*sent, *ours.returned])


def test_a_message_for_two_queues(idle_app: PostHogJobs, idle_server: RedisProcess) -> None:
    """A message that an exchange hands to several queues arrives in each of them."""
    both = Exchange("both", type="direct")
    queues = [Queue(name, both, routing_key="all") for name in ("one", "two")]

    sent = idle_app.send_task("plain", exchange=both, routing_key="all", declare=queues)

    assert [arrived(idle_server, name) for name in ("one", "two")] == [[sent.id]] * 2
