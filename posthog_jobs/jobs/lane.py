"""A thread that makes blocking calls for coroutines, so that no event loop is ever blocked."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Future

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The calls that the running job or hook has made and not waited for; `execution` does.
unawaited: ContextVar[list[Pending[Any]] | None] = ContextVar("unawaited", default=None)


#: Whether this is caused by a call that a lane's thread makes.
_is_on_lane: ContextVar[bool] = ContextVar("is_on_lane", default=False)


class Pending(Generic[T]):
    """A call under way on a lane. It is made whether or not anybody awaits it, as a promise is.

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


class Lane:
    """Makes blocking calls: in place for sync code, on one thread for coroutines.

    One thread keeps the calls in the order in which they were made. It is started by the first
    call that needs it, again after a fork, and finishes its work before the interpreter exits.
    """

    __slots__ = ("_executor", "_name", "_pid")

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._executor: ThreadPoolExecutor | None = None
        self._pid = 0

    def call(self, function: Callable[[], T], what: str) -> T | Pending[T]:
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
        context.run(_is_on_lane.set, True)
        if _is_on_lane.get():  # the thread may wait for what the call that it makes has caused
            executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            pending = Pending(executor.submit(context.run, function), what)
            executor.shutdown(wait=False)
        else:
            pending = Pending(self._thread().submit(context.run, function), what)
        calls = unawaited.get()
        if calls is not None:
            calls.append(pending)
        return pending

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None or self._pid != os.getpid():
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            self._pid = os.getpid()
        return self._executor


def in_event_loop() -> bool:
    """Tell whether the caller runs in an event loop, which it must not block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
