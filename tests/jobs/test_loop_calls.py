from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.errors import BrokerUnavailableError
from posthog_jobs.jobs.execution import LoopCall, LoopCaller, call
from tests.jobs.test_execution import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable


def in_loop(function: Callable[[], Any], what: str = "sending") -> LoopCall[Any]:
    # what a job's trigger does in a coroutine
    pending = LoopCaller("test").call(function, what)
    assert isinstance(pending, LoopCall)
    return pending


def until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 60
    while not condition():
        assert monotonic() < deadline, "it did not happen"
        gc.collect()


def test_in_place_without_a_loop() -> None:
    """Return: from sync code a call is made in place, and its result or error is the caller's."""
    caller = LoopCaller("test")

    assert caller.call(threading.current_thread, "asking") is threading.current_thread()
    with pytest.raises(BrokerUnavailableError):
        caller.call(fail, "failing")


def test_one_thread_in_order() -> None:
    """Return: calls of coroutines are made one after another, as they were made, off the loop."""
    caller, order = LoopCaller("test"), list[int]()

    async def main() -> set[threading.Thread]:
        pending = []
        for number in range(100):

            def note(number: int = number) -> threading.Thread:
                order.append(number)
                return threading.current_thread()

            pending.append(caller.call(note, "noting"))
        return {await each for each in pending if isinstance(each, LoopCall)}

    threads = asyncio.run(main())

    assert order == list(range(100))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_in_the_context_of_the_caller() -> None:
    """Return: a call sees the context variables that its caller set, and changes none of its."""
    trace: ContextVar[str] = ContextVar("trace", default="none")

    def swap() -> str:
        found = trace.get()
        trace.set("of the call")
        return found

    async def send(name: str) -> tuple[str, str]:
        trace.set(name)
        await asyncio.sleep(0)
        return await in_loop(swap), trace.get()

    async def main() -> list[tuple[str, str]]:
        return list(await asyncio.gather(send("a"), send("b")))

    assert asyncio.run(main()) == [("a", "a"), ("b", "b")]


def test_awaited_twice() -> None:
    """Return: a call is made once, however often it is awaited."""
    made: list[int] = []

    async def main() -> tuple[None, None]:
        pending = in_loop(lambda: made.append(1))
        return await pending, await pending

    assert asyncio.run(main()) == (None, None)
    assert made == [1]


def test_a_fork_gets_a_thread_of_its_own() -> None:
    """Return: after a fork the child's calls are made on a thread of the child."""
    caller = LoopCaller("test")

    async def made_by() -> int:
        pending = caller.call(os.getpid, "asking")
        assert isinstance(pending, LoopCall)
        return await asyncio.wait_for(pending, 60)

    assert asyncio.run(made_by()) == os.getpid()

    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(0 if asyncio.run(made_by()) == os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_unawaited_call_is_waited_for() -> None:
    """Return: what an async job sends off and does not await is done when the job is."""
    order: list[str] = []
    go_on = threading.Event()

    def send() -> None:
        assert go_on.wait(60)
        order.append("sent")

    async def job() -> None:
        in_loop(send)
        order.append("returned")
        go_on.set()

    call(job)

    assert order == ["returned", "sent"]


def fail() -> None:
    raise BrokerUnavailableError("the broker is gone")


def test_an_unawaited_call_fails_the_job() -> None:
    """Return: a job whose call failed fails with it, though it did not await the call."""

    async def job() -> str:
        in_loop(fail)
        return "done"

    with pytest.raises(BrokerUnavailableError, match="the broker is gone"):
        call(job)


def test_an_awaited_call_that_is_handled() -> None:
    """Return: a failure that the job has awaited and handled does not fail it."""

    async def job() -> str:
        try:
            await in_loop(fail)
        except BrokerUnavailableError:
            return "handled"
        return "not raised"

    assert call(job) == "handled"


def test_a_wait_that_was_cut_short() -> None:
    """Return: a call that the job stopped waiting for is waited for when the job returns."""
    go_on = threading.Event()

    def send() -> None:
        assert go_on.wait(60)
        fail()

    async def job() -> str:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_loop(send), 0.01)
        go_on.set()
        return "done"

    with pytest.raises(BrokerUnavailableError):
        call(job)


def test_a_job_that_fails_keeps_its_own_error(caplog: pytest.LogCaptureFixture) -> None:
    """Failure: a job's own exception goes before that of its call, which is logged."""

    async def job() -> None:
        in_loop(fail, "enqueueing 'x'")
        raise ValueError("mine")

    assert str(run_in_thread(job)) == "mine"
    until(lambda: "enqueueing 'x' failed, and nobody awaited it: the broker is" in caplog.text)
