"""How often a job was delivered again: one that ends its workers must not do so for ever."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from kombu.exceptions import KombuError

from posthog_jobs.broker.redis import UNREACHABLE
from posthog_jobs.errors import UnsupportedByBrokerError, WorkerLostTooOftenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.broker.redis import RedisServer

logger = logging.getLogger(__name__)

#: Seconds that a count is kept after the last start; it goes when the job ends.
KEPT_FOR: Final = 30 * 24 * 3600


#: Seconds that a job which was delivered before waits for another such one of its process to end.
PATIENCE: Final = 10.0

#: Held by the one such job that runs alone: a process has several only in a pool of threads.
_alone: Final = threading.Lock()


class Deliveries:
    """Counts the starts of jobs whose message had been delivered before.

    A first delivery is not counted, nor what a worker fetched and put back, or held when it died,
    without having started it. Those that are counted run one at a time in a process, as far as
    none takes longer than `PATIENCE`. So no neighbour is blamed for a job that ends its worker.
    """

    __slots__ = ("_forgets", "_most", "_server")

    def __init__(self, server: RedisServer, most: int, *, forgets: bool = False) -> None:
        """Count nothing yet.

        Args:
            server: the broker, or the Redis beside it.
            most: how often a job may be delivered again.
            forgets: whether a count goes when the job has run, since the broker does not see to
                that with the acknowledgement.
        """
        self._server: Final = server
        self._most: Final = most
        self._forgets: Final = forgets

    def start(self, task: str, task_id: str) -> Callable[[], None] | None:
        """Count a start. RabbitMQ alone has a limit of its own (`delivery-limit`).

        Args:
            task: the task's name.
            task_id: the job's id.

        Returns:
            What must be called when the job has ended, if anything.

        Raises:
            WorkerLostTooOftenError: it was started, and its worker died, too often; do not start
                it again.
        """
        end = _alone.release if _alone.acquire(timeout=PATIENCE) else None
        try:
            self._count(task, task_id)
        except BaseException:
            if end is not None:
                end()
            raise
        if not self._forgets:
            return end

        def forget() -> None:
            if end is not None:
                end()
            self._forget(task_id)

        return forget

    def _forget(self, task_id: str) -> None:
        with suppress(UnsupportedByBrokerError, KombuError, *UNREACHABLE):
            client, keys = self._server.connected()
            client.delete(keys.deliveries(task_id))

    def _count(self, task: str, task_id: str) -> None:
        try:
            client, keys = self._server.connected()
            pipe = client.pipeline()
            pipe.incr(keys.deliveries(task_id))
            pipe.expire(keys.deliveries(task_id), KEPT_FOR)
            count, _ = pipe.execute()
        except UnsupportedByBrokerError:
            return
        except (KombuError, *UNREACHABLE) as error:
            # it came from there just now, so this is a matter of moments
            logger.warning("%s[%s] starts again, uncounted: %s", task, task_id, error)
            return
        if count > self._most:
            raise WorkerLostTooOftenError(
                f"{task}[{task_id}] was delivered again {self._most} times, and each time the "
                "process that ran it died or lost its lease; find out why before you replay it, or "
                "raise posthog_jobs_max_deliveries"
            )
