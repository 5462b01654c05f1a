"""The broker of an app, as far as brokers differ; which one it is, is asked once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from posthog_jobs.broker.failures import Failures
from posthog_jobs.broker.transport.acknowledgement import Message
from posthog_jobs.errors import UnsupportedByBrokerError

if TYPE_CHECKING:
    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.broker.rabbitmq import Delays
    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.broker.schedule import Schedule


class Broker(Protocol):
    """What brings messages to workers."""

    @property
    def schedule(self) -> Schedule:
        """What waits."""

    @property
    def failures(self) -> Failures:
        """What failed."""

    @property
    def records(self) -> RedisServer:
        """The Redis that has failed jobs, ticks, and how often a job was delivered."""

    @property
    def knows_keys(self) -> bool:
        """Whether at most one job can wait under a key."""

    @property
    def ends_counts(self) -> bool:
        """Whether acknowledging a message lets go how often it was delivered."""

    @property
    def delays(self) -> Delays | None:
        """What sends delayed messages, where that takes more than Celery's own sending."""

    def keep(self, failure: FailedJob, message: Any) -> None:
        """See to it that a message which failed is kept, at the latest when it is acknowledged."""


class RedisBroker:
    """Redis, or any other one than RabbitMQ, which can do less."""

    knows_keys: Final = True
    ends_counts: Final = True
    delays: Final = None

    def __init__(self, server: RedisServer, schedule: Schedule) -> None:
        """Connect to nothing yet.

        Args:
            server: the broker.
            schedule: what waits there.
        """
        self.records: Final = server
        self.schedule: Final = schedule
        self.failures: Final = Failures(server)

    def keep(self, failure: FailedJob, message: Any) -> None:
        """Let the acknowledgement of a message move it to the failed jobs.

        Args:
            failure: why and how it failed.
            message: kombu's.

        Raises:
            UnsupportedByBrokerError: the broker is not Redis.
        """
        if not isinstance(message, Message):
            raise UnsupportedByBrokerError("the broker keeps no failed jobs; Redis does")
        message.failure = failure
