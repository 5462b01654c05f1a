"""What `meta.jobs` does in a running event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.errors import BrokerUnavailableError, DurationError, JobCallError, PayloadError
from tests.recorder import Recorder, make_jobs
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from datetime import datetime

    from posthog_jobs.jobs.message import JobMessage


class SlowSender(Recorder):
    """A sender that waits until it may send."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.finished = threading.Semaphore(0)

    def send(self, message: JobMessage) -> tuple[str, datetime]:
        assert self.go_on.wait(60)
        try:
            return super().send(message)
        finally:
            self.finished.release()


def test_awaiting_gives_none() -> None:
    """Return: awaiting a handle waits until the job is sent, and gives None, every time."""
    sender = Recorder()

    async def main() -> None:
        handle = make_jobs(sender).retryRequest(1).run_now()
        assert await handle is None  # type: ignore[func-returns-value]
        assert [message.id for message in sender.sent] == [handle.id]
        assert await handle is None  # type: ignore[func-returns-value]
        assert list(await asyncio.gather(handle, handle)) == [None, None]

    asyncio.run(main())
    assert len(sender.sent) == 1


def test_a_handle_of_sync_code_can_be_awaited() -> None:
    """Return: a job that was triggered without a loop has been sent; awaiting gives None."""
    sender = Recorder()
    handle = make_jobs(sender).clean_up().run_now()

    async def main() -> Any:
        return await handle

    assert asyncio.run(main()) is None
    assert len(sender.sent) == 1


def test_the_loop_is_not_blocked() -> None:
    """Return: in a running event loop, publishing never blocks the loop."""
    sender = SlowSender()

    async def main() -> None:
        handle = make_jobs(sender).retryRequest(1).run_now()
        waiting = asyncio.ensure_future(handle)
        await asyncio.sleep(0)  # the loop goes round, though nothing has been sent
        assert sender.sent == []
        assert not waiting.done()
        sender.go_on.set()
        await asyncio.wait_for(waiting, 60)
        assert len(sender.sent) == 1

    asyncio.run(main())


def test_sent_though_never_awaited() -> None:
    """Return: the job is sent by the call, also where its handle is dropped and the loop ends."""
    sender = SlowSender()

    async def main() -> None:
        make_jobs(sender).retryRequest(1).run_now()

    asyncio.run(main())
    assert sender.sent == []
    sender.go_on.set()

    assert sender.finished.acquire(timeout=60)
    assert len(sender.sent) == 1


def test_sent_though_the_wait_is_cancelled() -> None:
    """Return: who stops waiting for a handle does not stop its job from being sent."""
    sender = SlowSender()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(make_jobs(sender).retryRequest(1).run_now(), 0.01)

    asyncio.run(main())
    sender.go_on.set()

    assert sender.finished.acquire(timeout=60)
    assert len(sender.sent) == 1


def test_order_is_kept() -> None:
    """Return: jobs are sent in the order in which they were triggered."""
    sender = Recorder()
    jobs = make_jobs(sender)

    async def main() -> None:
        handles = [jobs.retryRequest(number).run_now() for number in range(50)]
        await handles[-1]
        assert [message.payload for message in sender.sent] == list(range(50))

    asyncio.run(main())


def test_sent_as_it_was_when_triggered() -> None:
    """Payload: what is done to a payload after the call does not change what is sent."""
    sender = SlowSender()

    async def main() -> None:
        payload = {"list": [1]}
        handle = make_jobs(sender).retryRequest(payload).run_now()
        payload["list"].append(2)
        payload["more"] = []
        sender.go_on.set()
        await handle

    asyncio.run(main())
    assert sender.sent[0].payload == {"list": [1]}


def test_a_failure_is_raised_where_it_is_awaited() -> None:
    """Return: a job that could not be sent raises where its handle is awaited, not before."""
    sender = Recorder()
    sender.error = BrokerUnavailableError("gone")

    async def main() -> None:
        handle = make_jobs(sender).retryRequest(1).run_now()
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError, match="gone"):
                await handle

    asyncio.run(main())


def test_bad_input_is_refused_by_the_call() -> None:
    """Arguments: bad input raises where the call is made, in a loop as elsewhere."""
    sender = Recorder()
    jobs = make_jobs(sender)

    async def main() -> None:
        with pytest.raises(JobCallError):
            jobs.retryRequest()
        with pytest.raises(PayloadError):
            jobs.retryRequest({1})
        with pytest.raises(DurationError):
            jobs.clean_up().run_in(-1, "seconds")

    asyncio.run(main())
    assert sender.sent == []


def test_a_failure_that_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Return: a job that could not be sent, and is not awaited, is logged with app and job."""
    sender = SlowSender()
    sender.error = BrokerUnavailableError("the broker is gone")
    line = (
        "enqueueing 'retryRequest' of app 'teapot' (app id 'one') failed, and nobody awaited it: "
        "the broker is gone"
    )

    async def main() -> None:
        make_jobs(sender).retryRequest(1).run_now()

    asyncio.run(main())
    gc.collect()
    sender.go_on.set()

    poll("the log line", lambda: line in caplog.text)


def test_a_failure_that_is_awaited_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Return: a failure that was raised to someone is theirs, and not logged as well."""
    sender = Recorder()
    sender.error = BrokerUnavailableError("gone")

    async def main() -> None:
        with pytest.raises(BrokerUnavailableError):
            await make_jobs(sender).retryRequest(1).run_now()

    asyncio.run(main())
    gc.collect()
    assert caplog.records == []
