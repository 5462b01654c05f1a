"""Calls an app's function, sync or async; async ones share one event loop per process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import threading
from concurrent.futures import wait
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakMethod

from posthog_jobs.errors import (
    AppExitError,
    AppUnreadableError,
    JobTimeLimitError,
    LoopUnavailableError,
    PostHogJobsError,
    RetryError,
    checked_delay,
)
from posthog_jobs.jobs.lane import unawaited
from posthog_jobs.jobs.running import current_job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from posthog_jobs.jobs.lane import Pending
    from posthog_jobs.jobs.running import RunningJob

#: Seconds that a job which is cancelled at its time limit has to clean up.
GRACE: Final = 5.0

#: Whether the caller is a Celery task, so that an app that exits must not end the process.
in_worker: ContextVar[bool] = ContextVar("in_worker", default=False)


class _LoopThread:
    """The event loop of this process, on a thread of its own, from the first async call on."""

    __slots__ = ("__weakref__", "_lock", "_loop", "_pid", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, awaitable: Awaitable[Any], limit: float | None = None) -> Any:
        """Await something on the loop and wait for it; stop it if the wait is interrupted.

        Raises:
            JobTimeLimitError: it was not done within the limit, in seconds, and was cancelled.
            LoopUnavailableError: there is no thread left for the loop, and it was not begun.
        """
        try:
            loop = self._started()
        except RuntimeError as error:  # which has nothing to do with what is awaited
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise LoopUnavailableError(f"the event loop of async jobs: {error}") from error
        if threading.current_thread() is self._thread:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise PostHogJobsError(
                "sync code that runs in the apps' event loop cannot wait for an async hook; call "
                "it with `await asyncio.to_thread(…)`"
            )
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_finish(awaitable, ended), loop)
        try:
            # timed here: a coroutine that blocks the loop would block the loop's own timers too
            if limit is not None and not wait([future], limit).done:
                _cut_short(future, ended, limit)
            return future.result()
        finally:
            future.cancel()  # a no-op unless a time limit or a signal ended the wait

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._pid != os.getpid():
            with self._lock:
                if self._loop is None or self._pid != os.getpid():
                    loop = asyncio.new_event_loop()
                    self._thread = threading.Thread(
                        target=_serve, args=(loop,), name="posthog_jobs.loop", daemon=True
                    )
                    try:
                        self._thread.start()
                    except RuntimeError:
                        loop.close()
                        raise
                    self._loop, self._pid = loop, os.getpid()
        return self._loop

    def forget_parent(self) -> None:
        """Forget the parent's loop: its thread is not there, and its lock may be held."""
        self._lock = threading.Lock()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for as long as the process lives, whatever app code does to end it."""
    while True:
        # these two end a loop; who waits for the coroutine gets them from its future
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


def after_fork(method: Callable[[], None]) -> None:
    """Call an object's method in every fork of this process, for as long as the object lives."""
    reference = WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


_loop_thread: Final = _LoopThread()
after_fork(_loop_thread.forget_parent)


def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function and wait until it, and all it sent off, is done.

    Args:
        function: sync, async, or sync with an awaitable result.
        args: its arguments.
        kwargs: its named arguments.

    Returns:
        What it returned, or what that resolved to.

    Raises:
        Exception: what it raised, or what one of its un-awaited calls (a job that it triggered,
            a value that it stored) failed with.
        AppExitError: it called `sys.exit`, or raised what is no Exception, and this is a worker.
        AppUnreadableError: it raised what cannot be logged.
        RetryPolicyError: it raised a RetryError whose delay is not a time span.
    """
    return _call(None, None, function, args, kwargs)


def run_job(
    running: RunningJob,
    limit: float | None,
    function: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Call a job's function as `call` does, as the job that `meta.job` tells of.

    Args:
        running: the job.
        limit: seconds after which an async one is cancelled; None: no limit.
        function: the job's function.
        args: its arguments.
        kwargs: its named arguments.

    Raises:
        JobTimeLimitError: it was cancelled.
        Exception: as `call`.
    """
    try:
        _call(running, limit, function, args, kwargs)
    except JobTimeLimitError as error:
        raise JobTimeLimitError(
            f"job {running.job_name!r} of app id {running.app_id!r} {error}"
        ) from None


def _call(
    running: RunningJob | None,
    limit: float | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    token, recursion_limit = current_job.set(running), sys.getrecursionlimit()
    try:
        result = function(*args, **kwargs)
        if result is not None and inspect.isawaitable(result):
            return _loop_thread.run(result, limit)
    except Exception as error:
        _check_usable(error, function)
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
        raise AppExitError(
            f"{_name(function)} {did}; return, or raise an exception, instead"
        ) from error
    finally:
        current_job.reset(token)
        if sys.getrecursionlimit() != recursion_limit:  # or it would be so for all that comes after
            sys.setrecursionlimit(recursion_limit)
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
        raise AppUnreadableError(text) from error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _is_told_to_end() -> bool:
    """Tell whether this worker is to end at once, or this child of its pool, as at a time limit."""
    worker = sys.modules.get("celery.worker.state")  # which only a worker imports
    if worker is not None and worker.should_terminate is not None:
        return True
    billiard = sys.modules.get("billiard.common")  # which only Celery's prefork pool imports
    return billiard is not None and bool(billiard.terminate_handler_fired())


def _cut_short(future: Future[Any], ended: threading.Event, limit: float) -> None:
    if not future.cancel():  # it has just ended by itself
        return
    outlook = "was cancelled"
    if not ended.wait(GRACE):
        outlook = (
            f"did not end within {GRACE:g} s of being cancelled, so that it may still be running"
        )
    raise JobTimeLimitError(
        f"ran longer than its time limit of {limit:g} s and {outlook}; raise @job(time_limit=…), "
        "or split the job"
    )


async def _finish(awaitable: Awaitable[Any], ended: threading.Event) -> Any:
    calls: list[Pending[Any]] = []
    unawaited.set(calls)
    try:
        result = await awaitable
        for pending in calls:
            if not pending.observed:
                await pending
        return result
    finally:
        ended.set()
