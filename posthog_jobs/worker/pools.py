"""What a worker needs of its pool: what it has not begun, how it tells of a failure, its end."""

from __future__ import annotations

import atexit
import os
import select
import threading
from contextlib import suppress
from inspect import isgenerator, ismethod
from queue import Empty
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.utils.log import get_logger
from celery.worker import state

if TYPE_CHECKING:
    from collections.abc import Callable

logger = get_logger(__name__)

#: Seconds that a child may take to confirm, and a thread to begin. A child is idle when it is
#: handed a job, unless the worker runs with `-O fast`.
_LONGEST: Final = 1.0
_TICK_MS: Final = 20


def confirm(pool: Any, hub: Any) -> None:
    """Wait until the children of a prefork pool have confirmed what they were handed.

    When a worker stops, or its connection is lost, Celery forgets the jobs that no child has
    confirmed. One that is in a child's pipe by then runs all the same: its message is put back and
    runs again, and the child waits 30 s for somebody to read its result before it ends.

    Args:
        pool: Celery's pool, of any kind.
        hub: kombu's event loop; None where there is none.
    """
    processes = getattr(pool, "_pool", None)
    results = getattr(processes, "_fileno_to_outq", None)
    if hub is None or not results:
        return
    poll = select.poll()
    for fd in results:
        poll.register(fd, select.POLLIN)
    until = monotonic() + _LONGEST
    while _is_unconfirmed(processes) and monotonic() < until:
        for fd, _ in poll.poll(_TICK_MS):
            if fd in results:
                _read(processes, hub, fd)
            else:
                poll.unregister(fd)
    for callback in hub._pop_ready():  # noqa: SLF001  # acknowledgements of what has ended
        callback()


def recall(pool: Any) -> None:
    """Take back what no thread of a pool has begun, as Celery does in a pool of processes.

    Its messages are put back when the channel closes. Left in the pool, it would run twice.

    Args:
        pool: Celery's pool, of any kind.
    """
    queue = getattr(getattr(pool, "executor", None), "_work_queue", None)
    if queue is None:
        return
    recalled: set[object] = set()
    with suppress(Empty):
        while True:
            item = queue.get_nowait()
            if item is None:  # tells the threads to end, one after another
                queue.put(None)
                break
            item.future.cancel()
            recalled.update(part.__self__ for part in item.args if ismethod(part))
    # a thread may have taken one just now, and not said yet that it begins
    until = monotonic() + _LONGEST
    while monotonic() < until and any(
        request not in state.active_requests and request not in recalled
        for request in tuple(state.reserved_requests)
    ):
        sleep(_TICK_MS / 1000)


def _is_unconfirmed(processes: Any) -> bool:
    return any(
        not job._accepted and job._write_to is not None and job._write_to._is_alive()  # noqa: SLF001  # billiard has no words for it
        for job in list(processes._cache.values())  # noqa: SLF001
    )


def _read(processes: Any, hub: Any, fd: int) -> None:
    """Read one message of a child, or go on with one that was read in part."""
    reader, _ = hub.readers.get(fd, (None, ()))
    if isgenerator(reader):
        with suppress(StopIteration):
            next(reader)
    else:
        processes.handle_result_event(fd)


def can_cancel(pool: BasePool) -> bool:
    """Tell whether a pool can end a task that runs, as one of processes can."""
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job


def report_failures(pool: BasePool) -> None:
    """Have a pool hand what Celery's tracer raises to the request, as one of processes does.

    Else a pool of threads forgets it, and the request never ends; solo raises it in the consumer.
    """
    if pool.uses_semaphore:  # it is one of processes
        return
    on_apply = pool.on_apply

    def apply(target: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def trace(name: str, task_id: str, *args: Any, **kwargs: Any) -> Any:
            try:
                return target(name, task_id, *args, **kwargs)
            except Exception:
                logger.exception("Task %s ran, and its end failed", task_id)
                return True, ExceptionInfo(), 0.0  # failed, why, and the runtime

        return on_apply(trace, *args, **options)

    pool.on_apply = apply


def leave_behind(pool: BasePool) -> None:
    """See to it that this process does not wait, at its end, for what the pool's threads run."""
    if not isinstance(pool, ThreadPool):
        return

    def end() -> None:
        atexit._run_exitfuncs()  # noqa: SLF001  # as the one that removes Celery's pidfile
        os._exit(0)  # as a pool of processes does

    # called last in, first out, so before the call that waits for a pool's threads
    threading._register_atexit(end)  # type: ignore[attr-defined]  # noqa: SLF001
