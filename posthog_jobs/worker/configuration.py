"""What this package asks of a Celery configuration, and changes in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kombu.transport import TRANSPORT_ALIASES

from posthog_jobs.broker import rabbitmq
from posthog_jobs.broker.envelope import COMPRESSIONS, can_inflate
from posthog_jobs.errors import ConfigurationError
from posthog_jobs.worker.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Celery settings that differ from Celery's own defaults; a configuration may change them.
DEFAULTS: Final = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "worker_consumer": "posthog_jobs.worker.consumer:JobConsumer",
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,  # a worker waits for its broker as long as it takes
}


#: Seconds that a retry counts for, if a configuration has retries follow without a wait.
_SHORTEST_INTERVAL: Final = 0.05


def adopt(conf: Any) -> None:
    """Make Celery's configuration a `Conf`; Celery has no option for its class."""
    if conf is not None:
        object.__setattr__(conf, "__class__", Conf)  # what is set otherwise is a key


def retry_policy(policy: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return kombu's retry policy, with as many retries as fit into so many seconds."""
    retries, waited, interval = 0, 0.0, float(policy.get("interval_start") or 0)
    step, longest = policy.get("interval_step", 0.2), policy.get("interval_max", 1)
    while waited < seconds:
        waited += max(interval, _SHORTEST_INTERVAL if retries else 0)
        interval = min(interval + step, longest)
        retries += 1
    return {**policy, "max_retries": retries + 1}


def checked_scheme(url: str | list[str] | None) -> str:
    """Return the scheme of the first broker URL.

    Raises:
        ConfigurationError: the URL is empty, or its scheme is of no broker.
    """
    if url == "":
        raise ConfigurationError(
            "broker_url is empty; set it to redis://… or amqp://…, or leave it out for the "
            "embedded Redis"
        )
    scheme = rabbitmq.scheme(url)
    if scheme and scheme not in TRANSPORT_ALIASES and "." not in scheme:
        raise ConfigurationError(
            f"broker_url has the scheme {scheme!r}, which is no broker; use redis://, rediss://, "
            "redis+socket://, sentinel:// or amqp://"
        )
    return scheme


def check_formats(conf: Any) -> None:
    """Refuse a configuration that takes or sends what workers do not read.

    Raises:
        ConfigurationError: it is not JSON, or compressed with what they do not unpack; the key is
            named.
    """
    compression = conf.task_compression
    if compression is not None and not can_inflate(compression):
        raise ConfigurationError(
            f"task_compression is {compression!r:.60}, which the workers of posthog_jobs do not "
            f"unpack, since others cannot be told to stop at a size; set it to {COMPRESSIONS}"
        )
    for key in (
        "accept_content",
        "result_accept_content",
        "task_serializer",
        "result_serializer",
        "event_serializer",
    ):
        value = conf[key] or ()
        names = [value] if isinstance(value, str) else list(value)
        if not set(names) <= {"json", "application/json"}:
            raise ConfigurationError(
                f"{key} is {value!r}, and posthog_jobs takes JSON alone, since other formats can "
                f"name code to run; remove {key} from the configuration"
            )


def check_not_eager(conf: Any) -> None:
    """Refuse a configuration that runs tasks where they are sent.

    A job that is due later would run now, and one that is sent while it is awaited never end.

    Raises:
        ConfigurationError: it does.
    """
    if conf.task_always_eager:
        raise ConfigurationError(
            "task_always_eager is set, and jobs wait on a broker until they are due; remove it, "
            "and test apps without a broker by the fixture posthog_app, or by posthog_jobs.testing"
        )
