from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.errors import BrokerUnavailableError, JobTimeLimitError, PostHogJobsError
from posthog_jobs.jobs import execution
from posthog_jobs.jobs.execution import call, ready_job
from posthog_jobs.jobs.function import exported_jobs
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.running import Delivery, RunningJob, current_job

if TYPE_CHECKING:
    from collections.abc import Callable


async def this_loop() -> int:
    return id(asyncio.get_running_loop())


def test_a_sync_function() -> None:
    """Functions: a sync one runs in the caller's thread, with all its arguments."""

    def function(*args: Any) -> Any:
        return args, threading.current_thread()

    assert call(function, 1, 2) == ((1, 2), threading.current_thread())


def test_an_async_function() -> None:
    """Functions: an async one is waited for, on a loop apart from the caller's thread."""

    async def function(payload: int, meta: int) -> Any:
        await asyncio.sleep(0)
        return payload + meta, threading.current_thread()

    total, thread = call(function, 1, 2)

    assert total == 3
    assert thread is not threading.current_thread()


def test_a_sync_function_with_an_awaitable() -> None:
    """Functions: what a sync function returns is waited for too, if it can be."""

    class Awaitable:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "done"

    assert call(Awaitable) == "done"
    assert call(lambda: asyncio.sleep(0, "slept")) == "slept"


@pytest.mark.parametrize(
    "error", [ValueError("x"), BrokerUnavailableError("x"), StopAsyncIteration]
)
def test_what_is_raised_is_raised_to_the_caller(error: Any) -> None:
    """Failure: an exception of a function, sync or async, is raised as it is."""

    def function() -> None:
        raise error

    async def async_function() -> None:
        raise error

    for each in (function, async_function):
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            call(each)


def test_one_loop_for_all_threads() -> None:
    """Functions: all async jobs of a process share one long-lived event loop."""
    loops: list[int] = []
    threads = [threading.Thread(target=lambda: loops.append(call(this_loop))) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(loops) == 8
    assert set(loops) == {call(this_loop)}


def test_async_functions_run_side_by_side() -> None:
    """Functions: async jobs of two threads run at the same time on the one loop."""
    arrived: list[asyncio.Event] = []

    async def meet() -> None:
        mine = asyncio.Event()
        arrived.append(mine)
        if len(arrived) == 2:
            for event in arrived:
                event.set()
        await asyncio.wait_for(mine.wait(), 60)

    other = threading.Thread(target=call, args=(meet,))
    other.start()
    call(meet)
    other.join(60)

    assert not other.is_alive()


def run_in_thread(function: Callable[[], Any]) -> BaseException | None:
    # a call that never comes back must fail the test, not hold it up
    outcome: list[BaseException | None] = []

    def target() -> None:
        try:
            call(function)
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(60)
    assert outcome, "the call does not come back"
    return outcome[0]


async def exits() -> None:
    sys.exit(3)


async def interrupts() -> None:
    raise KeyboardInterrupt


async def exits_in_a_task() -> None:
    await asyncio.gather(exits())


@pytest.mark.parametrize(
    ("function", "error"),
    [(exits, SystemExit), (interrupts, KeyboardInterrupt), (exits_in_a_task, SystemExit)],
)
def test_an_async_function_that_exits(function: Any, error: type[BaseException]) -> None:
    """Failure: what ends a process is raised to the caller; the loop lives on for other jobs."""
    loop = call(this_loop)

    assert type(run_in_thread(function)) is error
    assert call(this_loop) == loop


def test_a_function_that_stops_the_loop() -> None:
    """Failure: a job that stops the loop it runs in stops neither itself nor other jobs."""

    async def stops() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)

    assert run_in_thread(stops) is None
    assert run_in_thread(this_loop) is None


def test_an_exception_in_the_wait_cancels_the_coroutine() -> None:
    """Failure: a time limit that ends the wait cancels what was waited for."""
    cancelled = threading.Event()

    class TimeLimitError(Exception):
        pass

    def limit(*_: object) -> None:
        raise TimeLimitError

    main = threading.get_ident()

    async def job() -> None:
        try:
            while sys._current_frames()[main].f_code.co_name != "wait":  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    before = signal.signal(signal.SIGUSR1, limit)
    try:
        with pytest.raises(TimeLimitError):
            call(job)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert cancelled.wait(60)


def test_waiting_for_the_loop_in_the_loop() -> None:
    """Functions: sync code in the loop that would wait for the loop is told what to do."""

    async def job() -> None:
        call(this_loop)

    with pytest.raises(PostHogJobsError, match=r"await asyncio\.to_thread"):
        call(job)


def test_a_fork_gets_a_loop_of_its_own() -> None:
    """Functions: after a fork the child runs async jobs on a loop of its own."""
    parents = call(this_loop)

    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(0 if call(this_loop) != parents and run_in_thread(this_loop) is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert call(this_loop) == parents


@dataclass(frozen=True)
class Owner:
    app_id: str = "teapot-eu"
    team_id: int = 1


JOB = RunningJob(id="i", attempt=2, app_id="teapot-eu", team_id=1, job_name="brew", max_attempts=6)


def run_job(function: Callable[..., Any], payload: object = ABSENT, limit: Any = None) -> None:
    job = replace(exported_jobs("teapot", {"jobs": {"brew": function}})["brew"], time_limit=limit)
    released: list[bool] = []
    ready = ready_job(
        job, payload, Owner(), Delivery(id="i", attempt=2), lambda: released.append(True)
    )
    try:
        ready.run()
    finally:
        assert released == [True]


def test_the_running_job_is_known() -> None:
    """meta.job: sync and async functions see the job that they are; hooks inside of it see none."""
    seen: list[RunningJob | None] = []

    def function(meta: Any) -> None:
        seen.append(current_job.get())
        call(hook)

    def hook() -> None:
        seen.append(current_job.get())

    async def async_function(meta: Any) -> None:
        await asyncio.create_task(asyncio.to_thread(function, meta))

    run_job(function)
    run_job(async_function)

    assert seen == [JOB, None] * 2
    assert current_job.get() is None


def test_an_async_job_over_its_limit() -> None:
    """Time limit: an async job is cancelled, may clean up, and fails; the loop lives on."""
    loop = call(this_loop)
    cleaned_up: list[bool] = []

    async def job(meta: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)

    with pytest.raises(JobTimeLimitError) as raised:
        run_job(job, limit=1)

    assert "'brew' of app id 'teapot-eu' ran longer than its time" in str(raised.value)
    assert "limit of 1 s and was cancelled" in str(raised.value)
    assert cleaned_up == [True]
    assert call(this_loop) == loop


def test_a_job_within_its_limit() -> None:
    """Time limit: a job that ends in time, and what it raises, are not changed by the limit."""
    done: list[int] = []

    async def job(number: int, meta: Any) -> None:
        await asyncio.sleep(0)
        done.append(number)
        if number > 1:
            raise TimeoutError("its own")

    run_job(job, 1, limit=60)
    with pytest.raises(TimeoutError, match="its own"):
        run_job(job, 2, limit=60)
    run_job(lambda number, meta: done.append(number), 3, limit=0.001)

    assert done == [1, 2, 3]


def fails(meta: Any) -> None:
    raise LookupError(meta)


async def fails_in_the_loop(meta: Any) -> None:
    await asyncio.sleep(0)
    fails(meta)


@pytest.mark.parametrize("function", [fails, fails_in_the_loop])
def test_what_is_shown_above_an_apps_function(function: Any) -> None:
    """Failure: the traceback of what a job raised leads to its function in one step."""
    with pytest.raises(LookupError) as raised:
        run_job(function)

    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    at = names.index(function.__name__)
    assert names[:at] == ["test_what_is_shown_above_an_apps_function", "run_job", "_call"]
    assert names[-1] == "fails"


@pytest.mark.parametrize("blocks", [False, True])
def test_a_job_that_does_not_end_when_cancelled(
    monkeypatch: pytest.MonkeyPatch, *, blocks: bool
) -> None:
    """Time limit: a job that swallows its cancelling, or blocks the loop, holds up no worker."""
    monkeypatch.setattr(execution, "GRACE", 0.05)
    started, go_on = threading.Event(), threading.Event()

    async def job(meta: Any) -> None:
        started.set()
        if blocks:
            go_on.wait(60)
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)

    with pytest.raises(JobTimeLimitError, match="so that it may still be running"):
        run_job(job, limit=1)

    assert started.is_set()
    go_on.set()
    assert run_in_thread(this_loop) is None


def test_what_is_called_in_a_fork() -> None:
    """A fork: methods of what lives are called in it, of what does not are not, nor kept."""

    class Guarded:
        def forget(self) -> None:
            called.append(self)

    called: list[Guarded] = []
    alive, gone = Guarded(), Guarded()
    for each in (alive, gone):
        execution.after_fork(each.forget)
    del gone, each
    gc.collect()

    pid = os.fork()
    if pid == 0:
        os._exit(0 if called == [alive] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert called == []
