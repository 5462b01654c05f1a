"""RabbitMQ as the broker: the limits that it has and Redis has not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.broker.rabbitmq import LONGEST_DELAY
from posthog_jobs.operate.doctor.findings import ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kombu import Queue

    from posthog_jobs.operate.doctor.findings import Finding

#: Version → minutes that a message may be unacknowledged, unless configured; newest first.
_TIMEOUTS: Final = (((3, 8, 17), 30), ((3, 8, 15), 15))

#: The oldest version that knows the argument of a queue.
_PER_QUEUE: Final = (3, 11, 15)

_ARGUMENT: Final = "x-consumer-timeout"


def version(properties: Mapping[str, Any]) -> Finding:
    """Name the server.

    Args:
        properties: what it said of itself when it was connected to.
    """
    return ok("version", f"{properties.get('product', 'RabbitMQ')} {properties.get('version')}")


def consumer_timeout(properties: Mapping[str, Any], queues: Iterable[Queue]) -> Finding:
    """Look at how long a job may run before RabbitMQ delivers it again.

    AMQP tells of a queue's argument alone: neither of the server's setting nor of policies.

    Args:
        properties: what the server said of itself when it was connected to.
        queues: those that jobs go to, as Celery is configured.
    """
    found = tuple(int(part) for part in re.findall(r"\d+", str(properties.get("version")))[:3])
    minutes = next((minutes for oldest, minutes in _TIMEOUTS if found >= oldest), None)
    if minutes is None:
        return ok("consumer timeout", "none by default in this version")
    own = {queue.name: (queue.queue_arguments or {}).get(_ARGUMENT) for queue in queues}
    known = {name: int(length) / 1000 for name, length in own.items() if length}
    if own and len(known) == len(own):
        each = ", ".join(f"{seconds:,.0f} s in {name}" for name, seconds in known.items())
        return ok("consumer timeout", f"a job may take, with its wait in a worker, {each}")
    per_queue = f" (or per queue: queue_arguments {{'{_ARGUMENT}': ms}})" * (found >= _PER_QUEUE)
    return warn(
        "consumer timeout",
        f"a job that takes longer than consumer_timeout, with its wait in a worker, runs again; "
        f"{minutes} minutes unless the server is configured otherwise, which AMQP does not tell",
        f"For longer jobs, raise consumer_timeout in rabbitmq.conf{per_queue}; and set "
        "worker_prefetch_multiplier = 1",
    )


def longest_delay(*, native: bool) -> Finding:
    """Say how long a job can wait.

    Args:
        native: whether delayed messages wait on RabbitMQ.
    """
    if native:
        return ok("longest delay", f"2^28 - 1 s = {LONGEST_DELAY:,} s (8.5 years); more is refused")
    return warn(
        "longest delay",
        "delayed delivery is configured away: delayed jobs wait in the workers' memory",
        "Remove from the configuration what makes queues classic or exchanges direct",
    )
