"""Calls an app's function, sync or async; async ones share one event loop per process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import AppExitError, PostHogJobsError
from posthog_jobs.lane import unawaited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from posthog_jobs.lane import Pending


#: Whether the caller is a Celery task, so that an app that exits must not end the process.
in_worker: ContextVar[bool] = ContextVar("in_worker", default=False)


class _LoopThread:
    """The event loop of this process, on a thread of its own, from the first async call on."""

    __slots__ = ("_lock", "_loop", "_pid", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await something on the loop and wait for it; stop it if the wait is interrupted."""
        loop = self._started()
        if threading.current_thread() is self._thread:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise PostHogJobsError(
                "sync code that runs in the apps' event loop cannot wait for an async hook; call "
                "it with `await asyncio.to_thread(…)`"
            )
        future = asyncio.run_coroutine_threadsafe(_finish(awaitable), loop)
        try:
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
                    self._thread.start()
                    self._loop, self._pid = loop, os.getpid()
        return self._loop

    def after_fork(self) -> None:
        """Forget the parent's loop: its thread is not there, and its lock may be held."""
        self._lock = threading.Lock()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for as long as the process lives, whatever app code does to end it."""
    while True:
        # these two end a loop; who waits for the coroutine gets them from its future
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


_loop_thread: Final = _LoopThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_loop_thread.after_fork)


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
        AppExitError: it called `sys.exit`, and this is a worker.
    """
    try:
        result = function(*args, **kwargs)
        if result is not None and inspect.isawaitable(result):
            return _loop_thread.run(result)
    except SystemExit as error:
        # Elsewhere it may come from a signal handler of the program that this is; in a worker the
        # message would be delivered again, and end the next worker. Celery's own are subclasses.
        if type(error) is not SystemExit or not in_worker.get():
            raise
        name = getattr(function, "__qualname__", repr(function))
        raise AppExitError(
            f"{name} called sys.exit({error.code!r}); return, or raise an exception, instead"
        ) from error
    return result


async def _finish(awaitable: Awaitable[Any]) -> Any:
    calls: list[Pending[Any]] = []
    unawaited.set(calls)
    result = await awaitable
    for pending in calls:
        if not pending.observed:
            await pending
    return result
