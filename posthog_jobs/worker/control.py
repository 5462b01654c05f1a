"""The remote control commands that a worker of ours has besides Celery's own, or in their place."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from time import time
from typing import TYPE_CHECKING, Any, Final

from celery.utils.log import get_logger
from celery.worker.control import inspect_command

from posthog_jobs.broker.redis import unavailable
from posthog_jobs.broker.transport.channel import DurableChannel
from posthog_jobs.errors import BrokerUnavailableError
from posthog_jobs.redaction import masked, showable

if TYPE_CHECKING:
    from posthog_jobs.apps.installation import Installations

logger = get_logger(__name__)

#: The command by which a worker tells what `celery -A posthog_jobs jobs doctor` wants to know.
REPORT: Final = "posthog_jobs_report"

_SAMPLES: Final = 3

#: Celery leaves one in where the URL is of a unix socket, which kombu takes for the host.
_PASSWORD: Final = re.compile(r"(://[^/@:\s]*:)[^@\s]+@")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker tells of itself; no config, no payload, no secret.

    Attributes:
        name: its node name.
        versions: posthog_jobs, celery and python → version.
        skew: by how many seconds its clock is ahead of Redis'; None where the broker is another.
        pool: name of its pool, such as `prefork`.
        concurrency: how many jobs it runs at a time.
        installed: app id → version of the installation.
        broken: app id → the first line of why its code cannot be loaded there.
        lease: owner of the lease on what it fetched; None where the broker is not Redis.
        lease_seconds: length of that lease.
        queues: the queues it consumes.
    """

    name: str
    versions: Mapping[str, str]
    skew: float | None
    pool: str
    concurrency: int
    installed: Mapping[str, int]
    broken: Mapping[str, str]
    lease: str | None
    lease_seconds: float | None
    queues: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, answer: object) -> WorkerReport | None:
        """Read an answer; None where it is that of a worker without this command."""
        known = {field.name for field in fields(cls)} - {"name"}
        if not isinstance(answer, Mapping) or not known <= set(answer):
            return None
        values: dict[str, Any] = {field: answer[field] for field in known}
        return cls(name=name, **{**values, "queues": tuple(values["queues"])})


def without_passwords(value: Any) -> Any:
    """Return what Celery tells of a connection without the passwords of the URLs in it."""
    if isinstance(value, str):
        return _PASSWORD.sub(r"\1**@", value)
    if isinstance(value, dict):
        return {key: without_passwords(part) for key, part in value.items()}
    return [without_passwords(part) for part in value] if isinstance(value, list) else value


@inspect_command()  # type: ignore[untyped-decorator]
def stats(state: Any, **_: Any) -> dict[str, Any]:
    """Request worker statistics/information."""
    # transport options have passwords, such as those of Sentinel
    found: dict[str, Any] = masked(None, without_passwords(state.consumer.controller.stats()))
    return found


@inspect_command(name=REPORT)  # type: ignore[untyped-decorator]
def report(state: Any, **_: Any) -> dict[str, Any]:
    """What `celery -A posthog_jobs jobs doctor` wants to know of a worker."""
    controller, consumer = state.consumer.controller, state.consumer.task_consumer
    installations = state.app.runtime.installations
    channel = consumer.channel if consumer else None
    lease = channel.lease if isinstance(channel, DurableChannel) else None
    answer = WorkerReport(
        name=state.hostname,
        versions={
            "posthog_jobs": metadata.version("posthog-jobs"),
            "celery": metadata.version("celery"),
            "python": platform.python_version(),
        },
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


def installed(installations: Installations) -> dict[str, int]:
    """Return app id → version of what is installed and enabled in this process."""
    return {installation.id: installation.version for installation in installations}


def broken(installations: Installations) -> dict[str, str]:
    """Return app id → the first line of why its code cannot be loaded in this process."""
    return {
        app_id: showable(str(error).partition("\n")[0])
        for app_id, error in installations.broken.items()
    }


def skew(client: Any) -> float:
    """Return by how many seconds this process' clock is ahead of the Redis server's.

    The server's `TIME` is taken for the middle of the round trip, and the fastest of a few round
    trips counts. What may be due to the round trip itself is no skew.

    Args:
        client: of the server; what it raises when the server does not answer is passed on.
    """
    best, ahead = float("inf"), 0.0
    for _ in range(_SAMPLES):
        before = time()
        seconds, micros = client.time()
        after = time()
        if after - before < best:
            best = after - before
            ahead = (before + after) / 2 - (seconds + micros / 1e6)
    off = max(0.0, abs(ahead) - best / 2)
    return off if ahead > 0 else -off


def _skew(channel: DurableChannel) -> float | None:
    try:
        with unavailable(), channel.conn_or_acquire() as client:
            return skew(client)
    except BrokerUnavailableError:
        logger.debug("cannot compare clocks with Redis", exc_info=True)
        return None
