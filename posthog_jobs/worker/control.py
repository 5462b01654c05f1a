"""The remote control command that a worker of ours has besides Celery's own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from celery.utils.log import get_logger
from celery.worker.control import inspect_command
from redis.exceptions import RedisError

from posthog_jobs.broker.transport.channel import DurableChannel
from posthog_jobs.operate.doctor.clocks import measure
from posthog_jobs.operate.doctor.report import COMMAND, WorkerReport, broken, installed, versions
from posthog_jobs.redaction import masked

logger = get_logger(__name__)


@inspect_command()  # type: ignore[untyped-decorator]
def stats(state: Any, **_: Any) -> dict[str, Any]:
    """Request worker statistics/information."""
    # transport options have passwords, such as those of Sentinel
    found: dict[str, Any] = masked(None, state.consumer.controller.stats())
    return found


@inspect_command(name=COMMAND)  # type: ignore[untyped-decorator]
def report(state: Any, **_: Any) -> dict[str, Any]:
    """What `celery -A posthog_jobs jobs doctor` wants to know of a worker."""
    controller, consumer = state.consumer.controller, state.consumer.task_consumer
    installations = state.app.runtime.installations
    channel = consumer.channel if consumer else None
    lease = channel.lease if isinstance(channel, DurableChannel) else None
    answer = WorkerReport(
        name=state.hostname,
        versions=versions(),
        skew=_skew(channel) if isinstance(channel, DurableChannel) else None,
        pool=controller.pool_cls.__module__.rpartition(".")[2],
        concurrency=state.consumer.pool.num_processes,
        installed=installed(installations),
        broken=broken(installations),
        lease=lease.owner if lease else None,
        lease_seconds=lease.seconds if lease else None,
        queues=tuple(queue.name for queue in consumer.queues) if consumer else (),
    )
    return asdict(answer)


def _skew(channel: DurableChannel) -> float | None:
    try:
        with channel.conn_or_acquire() as client:
            return measure(client)
    except (RedisError, OSError):
        logger.debug("cannot compare clocks with Redis", exc_info=True)
        return None
