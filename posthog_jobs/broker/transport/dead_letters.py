"""The messages that a worker is done with and that failed, on their way to the failed jobs."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from kombu.log import get_logger

from posthog_jobs.broker import scripts

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.broker.transport.line import Line

logger = get_logger("kombu.transport.redis")

#: How long failed jobs are kept, in ms: 30 days.
KEPT_FOR: Final = 30 * 24 * 3600 * 1000
#: Most failed jobs that one script call lets go.
TRIM: Final = 100
#: Seconds between two looks for failed jobs that are too old.
TRIM_EVERY: Final = 3600.0


class DeadLetters:
    """Holds failures until Redis has them; until then their messages stay in flight.

    Args:
        keys: the transport's key names.
        inflight: the in-flight hash of the lease.
        most: how many failed jobs are kept on the broker.
    """

    def __init__(self, keys: Keys, inflight: str, most: int) -> None:
        self._keys, self._inflight, self._most = keys, inflight, most
        self._lock = threading.Lock()
        self._failures: dict[str, FailedJob] = {}
        self._trimmed_at = float("-inf")

    def add(self, tag: str, failure: FailedJob) -> None:
        """Take in a message that failed; from any thread."""
        with self._lock:
            self._failures[tag] = failure

    @property
    def tags(self) -> list[str]:
        """The tags of those that Redis does not have yet."""
        with self._lock:
            return list(self._failures)

    def send(self, line: Line, done: Callable[[str], None]) -> None:
        """Move all to the failed jobs, and let go what is too old or too much.

        Args:
            line: the connection to use.
            done: called with the tag of each that is not in flight any more.

        Raises:
            redis.exceptions.RedisError, OSError: that cannot be done now; the rest is still here.
        """
        dropped = 0
        for tag in self.tags:
            failure = self._failures[tag]
            kept, trimmed = scripts.FAIL(
                line,
                [*self._keys.fixed, *self._keys.failures, self._inflight],
                [
                    self._keys.prefix, tag, failure.id, failure.partition, failure.details,
                    KEPT_FOR, self._most, TRIM,
                ],
            )  # fmt: skip
            if not kept:
                logger.warning(
                    "%s[%s] failed here after its lease had ended; it runs elsewhere",
                    failure.job,
                    failure.id,
                )
            with self._lock:
                del self._failures[tag]
            done(tag)
            dropped += trimmed
        if monotonic() - self._trimmed_at > TRIM_EVERY:
            trimmed = scripts.TRIM(
                line,
                [*self._keys.fixed, *self._keys.failures],
                [self._keys.prefix, KEPT_FOR, self._most, TRIM],
            )
            dropped += trimmed
            if trimmed < TRIM:
                self._trimmed_at = monotonic()
        if dropped:
            warn_of_dropped(dropped, self._most)


def warn_of_dropped(dropped: int, most: int) -> None:
    """Log that failed jobs were let go, since there were too many, or too old ones."""
    logger.warning(
        "%s failed jobs were let go: they were older than 30 days, or more than "
        "posthog_jobs_max_failures=%s were kept. Replay or discard failed jobs, or raise that.",
        dropped,
        most,
    )
