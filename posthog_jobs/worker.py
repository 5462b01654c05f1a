"""What a Celery worker needs from us: tasks found on first sight, requests that show no payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.worker.consumer import Consumer

from posthog_jobs.rabbitmq import names_are_free
from posthog_jobs.transport.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable


logger = get_logger(__name__)


class JobStrategies(dict[str, Any]):
    """Task name → what the consumer does with its messages, made on first sight."""

    def __init__(self, consumer: Consumer) -> None:
        super().__init__()
        self._consumer = consumer

    def __missing__(self, name: str) -> Callable[..., Any]:
        """Return the strategy of a task that the worker has not met.

        Raises:
            celery.exceptions.NotRegistered: a KeyError; the name is not a job's.
        """
        consumer = self._consumer
        tasks = consumer.app.tasks
        task = tasks[name]
        consumer.task_buckets[name] = consumer.bucket_for_task(task)
        strategy: Callable[..., Any] = task.start_strategy(consumer.app, consumer)
        if name in tasks:
            self[name] = strategy
        return strategy


class JobConsumer(Consumer):
    """Celery's consumer, for which a job is known as soon as its app is installed."""

    def Strategies(self) -> JobStrategies:  # noqa: N802  # Celery's name for the factory
        """Return the strategies; Celery calls this once, when the consumer is made."""
        return JobStrategies(self)

    def on_ready(self) -> None:
        """Warn, once the worker is ready, of what the broker may lose."""
        super().on_ready()
        for warning in self.app.broker_warnings():
            logger.warning("%s", warning)

    def start(self) -> None:
        """Consume until the worker stops.

        Raises:
            ConfigurationError: RabbitMQ has one of the queues, but of another kind.
        """
        with names_are_free():
            super().start()


class DiscreetRequest(Request):
    """A request that `inspect` and Flower see the size of, and not the contents."""

    def info(self, safe: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return what the request is about, with its arguments described."""
        info: dict[str, Any] = super().info(safe=True)
        return info
