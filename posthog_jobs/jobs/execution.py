"""How an app's function is called, sync or async, and how its calls leave the event loop.

Async functions share one event loop per process. What they call that blocks is called by a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import operator
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, _base, wait
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from posthog_jobs.errors import (
    AppRaisedError,
    JobTimeLimitError,
    LoopUnavailableError,
    PostHogJobsError,
    RetryError,
    checked_delay,
)
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.running import RunningJob, current_job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from concurrent.futures import Future

    from posthog_jobs.jobs.function import JobFunction
    from posthog_jobs.jobs.retry import Policy
    from posthog_jobs.jobs.running import Delivery

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a job which is cancelled at its time limit has to clean up.
GRACE: Final = 5.0

#: Whether the caller is a Celery task, so that an app that exits must not end the process.
in_worker: ContextVar[bool] = ContextVar("in_worker", default=False)

#: The calls that the running job or hook has sent out of the loop and not waited for.
_unawaited: ContextVar[list[LoopCall[Any]] | None] = ContextVar("unawaited", default=None)

#: Whether this is caused by a call that a `LoopCaller`'s thread makes.
_in_loop_call: ContextVar[bool] = ContextVar("in_loop_call", default=False)

#: Where the frames are that lie between the caller of an app's async function and its coroutine.
_BETWEEN: Final = {__file__, _base.__file__}

#: What lives → what is called with it in a fork of this process.
_in_forks: Final[WeakKeyDictionary[Any, Callable[[Any], None]]] = WeakKeyDictionary()


class Owner(Protocol):
    """Whose job it is: the `meta` that its function is given."""

    @property
    def app_id(self) -> str:
        """The installation's id."""

    @property
    def team_id(self) -> int:
        """The installation's team."""


@dataclass(frozen=True, slots=True)
class ReadyJob:
    """A job whose app is set up.

    Attributes:
        retry: how often it is run again when it raises `RetryError`.
        run: runs it here, once, and waits for its end.
    """

    retry: Policy
    run: Callable[[], object]


def ready_job(
    job: JobFunction,
    payload: object,
    meta: Owner,
    delivery: Delivery,
    release: Callable[[], None],
) -> ReadyJob:
    """Return what runs a job's function as `call` does, with `meta.job` set meanwhile.

    An async one that runs longer than its time limit is cancelled, and raises JobTimeLimitError.

    Args:
        job: the job.
        payload: its payload, or ABSENT.
        meta: its installation's, set up.
        delivery: what its message says of this run.
        release: called at the end.
    """
    retries = job.retry.retries
    running = RunningJob(
        id=delivery.id,
        attempt=delivery.attempt,
        due=delivery.due,
        key=delivery.key,
        app_id=meta.app_id,
        team_id=meta.team_id,
        job_name=job.name,
        max_attempts=None if retries is None else retries + 1,
    )
    if payload is ABSENT:
        payload = job.default
    args = (meta,) if payload is ABSENT else (payload, meta)
    # a partial, which has no frame of its own in the traceback of what the job raises
    run = partial(_call, running, job.time_limit, job.function, args, release)
    return ReadyJob(job.retry, run)


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function and wait until it, and all it sent off, is done.

    Args:
        function: sync, async, or sync with an awaitable result.
        args: its arguments.

    Returns:
        What it returned, or what that resolved to.

    Raises:
        Exception: what it raised, or what one of its un-awaited calls (a job that it triggered,
            a value that it stored) failed with.
        AppRaisedError: it raised what cannot be logged; or, in a worker, called `sys.exit`, or
            raised what is not an Exception.
        RetryPolicyError: it raised a RetryError whose delay is not a time span.
    """
    return _call(None, None, function, args)


def _call(
    running: RunningJob | None,
    limit: float | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    release: Callable[[], None] | None = None,
) -> Any:
    token, recursion_limit = current_job.set(running), sys.getrecursionlimit()
    try:
        result = function(*args)
        if result is not None and inspect.isawaitable(result):
            return _loop_thread.run(result, running, limit)
    except Exception as error:
        _check_usable(error, function)
        _leave_out_loop(error)
        raise
    except BaseException as error:
        # Elsewhere it may come from a signal handler of the program that this is; in a worker it
        # would end what else is to run, or the worker, and then the next one, to which the message
        # is delivered again.
        if not in_worker.get() or (isinstance(error, SystemExit) and _is_told_to_end()):
            raise
        did = (
            f"called sys.exit({error.code!r})"
            if type(error) is SystemExit
            else f"raised {type(error).__name__}, which is not an Exception"
        )
        raise AppRaisedError(
            f"{_name(function)} {did}; return, or raise an exception, instead"
        ) from error
    finally:
        current_job.reset(token)
        if sys.getrecursionlimit() != recursion_limit:  # or it would be so for all that comes after
            sys.setrecursionlimit(recursion_limit)
        if release is not None:
            release()
    return result


def _check_usable(error: Exception, function: Callable[..., Any]) -> None:
    """Raise what can be logged, kept and waited for in place of an exception that cannot."""
    if isinstance(error, RetryError) and error.delay is not None:
        error.delay = checked_delay(error.delay)  # which a class of the app's may have set
    try:
        str(error), repr(error)
    except Exception:  # noqa: BLE001  # an app's code, which may do anything
        text = (
            f"{_name(function)} raised {type(error).__name__}, whose text cannot be read; mend "
            "its __str__ and __repr__"
        )
        if isinstance(error, RetryError):
            raise RetryError(text, delay=error.delay) from error
        raise AppRaisedError(text) from error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _is_told_to_end() -> bool:
    """Tell whether this worker is to end at once, or this child of its pool, as at a time limit."""
    worker = sys.modules.get("celery.worker.state")  # which only a worker imports
    if worker is not None and worker.should_terminate is not None:
        return True
    billiard = sys.modules.get("billiard.common")  # which only Celery's prefork pool imports
    return billiard is not None and bool(billiard.terminate_handler_fired())


def _leave_out_loop(error: Exception) -> None:
    """Let a traceback show an app's coroutine right below its caller, as it shows a function."""
    if (caller := error.__traceback__) is not None:
        below = caller.tb_next
        while below is not None and below.tb_frame.f_code.co_filename in _BETWEEN:
            below = below.tb_next
        caller.tb_next = below or caller.tb_next


def after_fork(function: Callable[[], None]) -> None:
    """Call a function of a module, or one method of an object, in every fork of this process.

    The method for as long as the object lives, which this does not keep alive.
    """
    if isinstance(function, MethodType):
        _in_forks[function.__self__] = function.__func__
    else:
        _in_forks[function] = operator.call


def _call_in_fork() -> None:
    for target, function in list(_in_forks.items()):
        function(target)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_call_in_fork)


class _LoopThread:
    """The event loop of this process, on a thread of its own, from the first async call on."""

    __slots__ = ("__weakref__", "_lock", "_loop", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        after_fork(self._forget_parent)

    def run(self, awaitable: Awaitable[Any], job: RunningJob | None, limit: float | None) -> Any:
        """Await something on the loop and wait for it; stop it if the wait is interrupted.

        Args:
            awaitable: what an app's function returned.
            job: the job that it is of, if it is one's.
            limit: the seconds that it may take; None: any.

        Raises:
            JobTimeLimitError: it was not done in time, and was cancelled.
            LoopUnavailableError: there is no thread left for the loop, and it was not begun.
        """
        try:
            loop = self._started()
        except PostHogJobsError:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_finish(awaitable, ended), loop)
        try:
            # timed here: a coroutine that blocks the loop would block the loop's own timers too
            if limit is not None and not wait([future], limit).done:
                _cut_short(future, ended, job, limit)
            return future.result()
        finally:
            future.cancel()  # a no-op unless a time limit or a signal ended the wait

    def _started(self) -> asyncio.AbstractEventLoop:
        if threading.current_thread() is self._thread:
            raise PostHogJobsError(
                "sync code that runs in the apps' event loop cannot wait for an async hook; call "
                "it with `await asyncio.to_thread(…)`"
            )
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=_serve, args=(loop,), name="posthog_jobs.loop", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    loop.close()
                    raise LoopUnavailableError(f"the event loop of async jobs: {error}") from error
                self._loop, self._thread = loop, thread
            return self._loop

    def _forget_parent(self) -> None:
        # its thread is not there, and its lock may be held
        self._lock, self._loop, self._thread = threading.Lock(), None, None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for as long as the process lives, whatever app code does to end it."""
    while True:
        # these two end a loop; who waits for the coroutine gets them from its future
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


_loop_thread: Final = _LoopThread()


def _cut_short(
    future: Future[Any], ended: threading.Event, job: RunningJob | None, limit: float
) -> None:
    if not future.cancel():  # it has just ended by itself
        return
    outlook = "was cancelled"
    if not ended.wait(GRACE):
        outlook = (
            f"did not end within {GRACE:g} s of being cancelled, so that it may still be running"
        )
    what = f"job {job.job_name!r} of app id {job.app_id!r} " if job else ""
    raise JobTimeLimitError(
        f"{what}ran longer than its time limit of {limit:g} s and {outlook}; raise "
        "@job(time_limit=…), or split the job"
    )


async def _finish(awaitable: Awaitable[Any], ended: threading.Event) -> Any:
    calls: list[LoopCall[Any]] = []
    _unawaited.set(calls)
    try:
        result = await awaitable
        for each in calls:
            if not each.observed:
                await each
        return result
    finally:
        ended.set()


class LoopCall(Generic[T]):
    """A call that has left the event loop. It is made, awaited or not, as a promise is.

    A failure that nobody awaits is logged; inside of a job or hook it fails that.
    """

    __slots__ = ("_future", "_what", "observed")

    def __init__(self, future: Future[T], what: str) -> None:
        self._future: Final = future
        self._what: Final = what
        self.observed = False

    def __await__(self) -> Generator[object, None, T]:
        try:
            # shielded: who stops waiting must not stop what was asked for
            return (yield from asyncio.shield(asyncio.wrap_future(self._future)).__await__())
        finally:
            self.observed = self._future.done()  # not if the wait was cut short

    def __del__(self) -> None:
        if not self.observed:
            what = self._what

            def log_failure(future: Future[T]) -> None:
                if not future.cancelled() and (error := future.exception()) is not None:
                    logger.error("%s failed, and nobody awaited it: %s", what, error)

            self._future.add_done_callback(log_failure)


class LoopCaller:
    """Makes blocking calls: in place for sync code, on one thread for coroutines.

    One thread keeps the calls in the order in which they were made. It is started by the first
    call that needs it, again after a fork, and finishes its work before the interpreter exits.
    """

    __slots__ = ("__weakref__", "_executor", "_name")

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._executor: ThreadPoolExecutor | None = None
        after_fork(self._forget_parent)

    def call(self, function: Callable[[], T], what: str) -> T | LoopCall[T]:
        """Call a function that blocks.

        Args:
            function: what to call.
            what: what it does, for the log if it fails and nobody awaits it.

        Returns:
            What the function returned; in a running event loop an awaitable of that.
        """
        if not in_event_loop():
            return function()
        context = copy_context()  # a message belongs to the trace that it was sent in
        context.run(_in_loop_call.set, True)
        if _in_loop_call.get():  # the thread may wait for what the call that it makes has caused
            executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            pending = LoopCall(executor.submit(context.run, function), what)
            executor.shutdown(wait=False)
        else:
            pending = LoopCall(self._thread().submit(context.run, function), what)
        calls = _unawaited.get()
        if calls is not None:
            calls.append(pending)
        return pending

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        return self._executor

    def _forget_parent(self) -> None:
        self._executor = None  # whose thread is not there


def in_event_loop() -> bool:
    """Tell whether the caller runs in an event loop, which it must not block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
