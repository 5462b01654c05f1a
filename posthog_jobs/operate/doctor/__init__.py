"""`celery -A posthog_jobs jobs doctor`: a list of checks, over what was asked once.

A check finds one thing. One that cannot look finds that, and raises nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from posthog_jobs.broker.redis import REFUSED, is_forbidden, unavailable
from posthog_jobs.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    PostHogJobsError,
    UnsupportedByBrokerError,
)
from posthog_jobs.operate.doctor import checks
from posthog_jobs.operate.doctor.asked import Asked
from posthog_jobs.operate.doctor.checks import Finding, Verdict, fail, warn
from posthog_jobs.operate.doctor.server import Server
from posthog_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from posthog_jobs.operate.doctor.asked import Examined
    from posthog_jobs.operate.doctor.server import Connected

T = TypeVar("T")

__all__ = ["Finding", "Verdict", "examine", "warnings_for"]

#: Of a Redis server: the broker, or the one of `meta.storage`.
_OF_SERVER: Final = {
    "version": checks.version,
    "persistence": checks.persistence,
    "eviction": checks.eviction,
    "memory": checks.memory,
}
_OF_RABBITMQ: Final = {
    "version": checks.rabbitmq_version,
    "consumer timeout": checks.consumer_timeout,
    "longest delay": checks.longest_delay,
}
#: What cannot be told before the workers were asked.
_OF_WORKERS: Final = {"apps": checks.apps, "versions": checks.versions}
_OF_JOBS: Final = {
    "clocks": checks.clocks,
    "lease": checks.lease,
    "queues": checks.queues,
    "schedule": checks.schedule,
    "in flight": checks.in_flight,
    "failed jobs": checks.failed_jobs,
}


def examine(app: Examined, broker: Connected, *, timeout: float) -> list[Finding]:
    """Look at the broker and the workers of an app, once.

    Args:
        app: the Celery app.
        broker: gives a client and the key names of its broker, if that is Redis.
        timeout: seconds to wait for the workers' answers.

    Returns:
        What every check found, in the order of the table; if the broker is away, that.
    """
    found = list(_of_broker(Asked(app, broker, timeout)))
    with suppress(ConfigurationError):  # which the check of the apps says
        if (store := app.store_server()) is not None:
            server = Server(store.connected, "values of meta.storage")
            found += [
                replace(each, check=f"store {each.check}") for each in _each(_OF_SERVER, server)
            ]
    return found


def warnings_for(broker: Connected) -> list[str]:
    """Return what a broker is set up to lose, a sentence each; none for RabbitMQ.

    A server that hides its settings (`CONFIG` forbidden or renamed) is judged by `INFO` alone.
    """
    server, found = Server(broker), []
    try:
        with unavailable():
            found += [checks.version(server), checks.eviction(server)]
            with suppress(REFUSED):
                found.append(checks.persistence(server))
    except UnsupportedByBrokerError:
        return []
    except BrokerUnavailableError as error:
        return [f"Redis does not tell how it keeps its data: {error.__cause__}"]
    return [f"{each.detail}. {each.fix}." for each in found if each.verdict is not Verdict.OK]


def _of_broker(asked: Asked) -> Iterator[Finding]:
    yield (reached := _look("broker", checks.broker, asked))
    if reached.verdict is Verdict.FAIL:
        return
    if asked.is_rabbitmq:
        yield from _each(_OF_RABBITMQ, asked)
    else:
        yield from _each(_OF_SERVER, asked.server)
    yield _look("workers", checks.workers, asked)
    if asked.knows_workers:
        yield from _each(_OF_WORKERS, asked)
        of_jobs = {"queues": checks.queues} if asked.is_rabbitmq else _OF_JOBS
        yield from _each(of_jobs, asked)
    if asked.is_rabbitmq and asked.app.settings.redis_url is not None:
        yield _look("failed jobs", checks.failed_jobs, asked)


def _each(of: Mapping[str, Callable[[T], Finding]], asked: T) -> Iterator[Finding]:
    return (_look(name, check, asked) for name, check in of.items())


def _look(name: str, check: Callable[[T], Finding], asked: T) -> Finding:
    try:
        found = check(asked)
    except REFUSED as error:
        why = _first_line(error)
        if is_forbidden(error):
            fix = "Allow the user of broker_url that command, or look at the server yourself"
            found = warn(f"Redis does not tell: {why}", fix)
        else:
            found = fail(f"Redis refuses what the check needs: {why}", "See to what it says")
    except PostHogJobsError as error:
        found = fail(_first_line(error), "Mend it as that says, and look again")
    except Exception as error:  # noqa: BLE001  # whatever it is, the other checks go on
        found = fail(
            f"cannot be looked at: {type(error).__name__}: {_first_line(error)}",
            "See that the broker runs, and that broker_url is right",
        )
    return replace(found, check=name)


def _first_line(error: Exception) -> str:
    return redact(str(error).partition("\n")[0].rstrip("."))
