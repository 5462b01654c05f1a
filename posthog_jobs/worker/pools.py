"""What Celery leaves open about pools: what one has not begun, its end, and time limits."""

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

from celery.concurrency.base import BasePool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import state

from posthog_jobs.broker.envelope import task_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from posthog_jobs.apps.installation import Installation

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


def leave_behind(pool: BasePool) -> None:
    """See to it that this process does not wait, at its end, for what the pool's threads run."""
    if not isinstance(pool, ThreadPool):
        return

    def end() -> None:
        atexit._run_exitfuncs()  # noqa: SLF001  # as the one that removes Celery's pidfile
        os._exit(0)  # as a pool of processes does

    # called last in, first out, so before the call that waits for a pool's threads
    threading._register_atexit(end)  # type: ignore[attr-defined]  # noqa: SLF001


def unlimited_jobs(installations: Iterable[Installation], pool: str) -> dict[str, str]:
    """Return the jobs whose time limit a pool cannot keep, each with a sentence that says so.

    Args:
        installations: who is installed.
        pool: the module of the worker's pool.

    Returns:
        Task name → warning.
    """
    if pool == "celery.concurrency.prefork":
        return {}
    name = {"thread": "threads"}.get(pool.rpartition(".")[2], pool.rpartition(".")[2])
    return {
        task_name(installation.definition.name, job.name): (
            f"job {job.name!r} of app {installation.definition.name!r} has time_limit="
            f"{job.time_limit:g}, which the pool {name} cannot keep for a sync function: it runs "
            "on. Make it async, or run the worker with --pool prefork"
        )
        for installation in installations
        for job in installation.definition.jobs.values()
        if job.time_limit is not None and not job.is_async
    }
