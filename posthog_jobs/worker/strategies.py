"""What a consumer does with the messages of each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker.consumer import Consumer


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
