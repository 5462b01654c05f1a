"""Metrics of a worker and its broker for Prometheus, served to this machine alone.

Needs the extra `metrics`. All counting is done by the worker's parent, which learns of the end of
each job in every pool; so there is one registry, and no files between processes.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery.utils.log import get_logger
from celery.worker import state

from posthog_jobs.broker.envelope import parse_partition, parse_task_name
from posthog_jobs.broker.failure import Reason
from posthog_jobs.broker.redis import unavailable
from posthog_jobs.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    UnsupportedByBrokerError,
)
from posthog_jobs.worker.job_ends import Result
from posthog_jobs.worker.requests import JobRequest

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
    from prometheus_client.core import GaugeMetricFamily
except ImportError as error:
    raise ConfigurationError(
        "posthog_jobs_metrics_port is set, which takes Prometheus' client: pip install "
        f"'posthog-jobs[metrics]' ({error})"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from prometheus_client.core import Metric

    from posthog_jobs.broker.redis import Keys, RedisServer
    from posthog_jobs.broker.transport.lease import Lease
    from posthog_jobs.worker.job_ends import JobEnd
    from posthog_jobs.worker.runtime import Runtime

logger = get_logger(__name__)

#: What is served says how much of what runs here, which is nobody's business elsewhere.
HOST: Final = "127.0.0.1"

#: Seconds to connect to the broker, and for a reply, when it is asked for what it holds.
SCRAPE_LIMITS: Final = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}

_LABELS: Final = ("app", "job")
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

#: How many partitions (app ids and jobs) are looked at one by one, those that are due first, and
#: how many leases: so much takes Redis some milliseconds.
_PARTITIONS: Final = 1000
_LEASES: Final = 1000

#: An app's name and a job's.
Pair = tuple[str, str]

#: How many pairs of app and job have labels of their own; each is some 40 time series.
MOST: Final = 200

#: What no installed app exports; a message may name anything.
UNKNOWN: Final[Pair] = ("unknown", "unknown")
#: What came after the first `MOST`.
OTHER: Final[Pair] = ("other", "other")


class Measured(Protocol):
    """What the metrics need of a Celery app."""

    @property
    def runtime(self) -> Runtime:
        """Who is installed."""

    @property
    def tasks(self) -> Container[str]:
        """The names of its tasks."""


class Metrics:
    """What a worker counts, and what it asks the broker for when it is scraped."""

    def __init__(
        self,
        app: Measured,
        broker: RedisServer,
        queues: Callable[[], Mapping[str, Sequence[str]]],
    ) -> None:
        """Count from now on; nothing is served yet.

        Args:
            app: the Celery app.
            broker: the broker, with timeouts that are shorter than a scrape may take.
            queues: gives queue → the lists that it is, for the queues that the worker consumes.
        """
        self._app: Final = app
        self._broker: Final = broker
        self._queues: Final = queues
        self._labels: Final = MetricLabels(self._is_known)
        self.registry: Final = CollectorRegistry(support_collectors_without_names=True)
        self._close: Callable[[], None] | None = None

        registry = self.registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"posthog_jobs_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            name = f"posthog_jobs_{name}_seconds"
            return Histogram(name, text, _LABELS, buckets=_BUCKETS, registry=registry)

        self._ran = counter("ran", "Ended runs of jobs, by result.", *_LABELS, "result")
        self._failed = counter("failed", "Jobs kept as failed, by reason.", *_LABELS, "reason")
        self._retried = counter("retried", "Jobs sent again, due later.", *_LABELS)
        self._promoted = counter("promoted", "Jobs moved to their queue when they were due.")
        self._duration = histogram("duration", "How long jobs ran.")
        self._lateness = histogram(
            "lateness", "How long after they were due, or sent, jobs started."
        )
        registry.register(self)

    def count(self, end: JobEnd) -> None:
        """Count the end of a job; from any thread."""
        pair = self._labels.of(end.app, end.job)
        self._ran.labels(*pair, end.result.value).inc()
        if end.reason is not None:
            self._failed.labels(*pair, end.reason.value).inc()
        if end.result is Result.RETRIED:
            self._retried.labels(*pair).inc()
        if end.duration is not None:
            self._duration.labels(*pair).observe(end.duration)
        if end.lateness is not None:
            self._lateness.labels(*pair).observe(end.lateness)

    def count_unreadable(self, reason: Reason) -> None:
        """Count a message that is kept as failed because no job can be made of it."""
        self._failed.labels(*UNKNOWN, reason.value).inc()

    def follow(self, lease: Lease) -> None:
        """Count what a lease promotes, and what it is told cannot be read; from any thread."""
        lease.on_promoted = self._promoted.inc
        lease.on_refused = partial(self.count_unreadable, Reason.UNDECODABLE)

    def serve(self, port: int) -> None:
        """Serve the metrics on a thread of its own, until `close`; any number of calls do it once.

        A port that is taken is an error in the log, and no reason for a worker not to run jobs.

        Args:
            port: where, on the loopback interface; 0 for any that is free, which is logged.
        """
        if self._close is not None:
            return
        try:
            server, thread = start_http_server(port, HOST, self.registry)
        except OSError as error:
            logger.error(  # noqa: TRY400  # no traceback: the line says it all
                "Metrics are not served, for port %s of %s cannot be had: %s. Give each worker of "
                "a machine its own posthog_jobs_metrics_port, or 0 for any that is free.",
                port,
                HOST,
                error,
            )
            return

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._close = close
        # a process that the pool starts later would keep the port after this one is gone
        os.register_at_fork(after_in_child=server.socket.close)
        logger.info("Metrics are served at http://%s:%s/metrics", HOST, server.server_port)

    def close(self, **_: Any) -> None:
        """Serve no more; takes what Celery's signals pass."""
        if self._close is not None:
            self._close()
            self._close = None

    def describe(self) -> Iterable[Metric]:
        """Promise nothing, so that to be registered asks nobody."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges; those of a broker that does not answer are left out."""
        yield self._in_flight()
        try:
            with unavailable():
                backlog = read_backlog(*self._broker.connected(), self._queues())
        except UnsupportedByBrokerError:
            return
        except BrokerUnavailableError as error:
            logger.debug("the broker's metrics are left out: %s", error)
            yield _gauge("broker_up", "Whether the broker answers.", 0)
            return
        yield _gauge("broker_up", "Whether the broker answers.", 1)
        yield from self._waiting(backlog)
        yield _gauge("fetched", "Messages that workers hold, on the whole broker.", backlog.fetched)
        yield _gauge("failed_kept", "Failed jobs that are kept on the broker.", backlog.failed)
        queued = GaugeMetricFamily(
            "posthog_jobs_queued", "Messages in the queues of this worker.", labels=["queue"]
        )
        for name, length in backlog.queued.items():
            queued.add_metric([name], length)
        yield queued

    def _in_flight(self) -> Metric:
        running: Tally[Pair] = Tally()
        for request in list(state.requests.values()):
            if isinstance(request, JobRequest):
                running[self._labels.of(*request.subject)] += 1
        return _by_job("in_flight", "Jobs that this worker has and that have not ended.", running)

    def _waiting(self, backlog: Backlog) -> Iterable[Metric]:
        waiting: Tally[Pair] = Tally()
        due: Tally[Pair] = Tally()
        lag: dict[Pair, float] = {}
        for part in backlog.waiting:
            names = parse_task_name(part.task)
            pair = self._labels.of(*(names or (self._app.runtime.app_name(part.app_id), part.task)))
            waiting[pair] += part.count
            due[pair] += part.due
            lag[pair] = max(lag.get(pair, 0.0), part.lag)
        rest = backlog.waiting_in_all - waiting.total()
        if rest > 0:  # in more partitions than are looked at
            waiting[OTHER] += rest
        yield _by_job("waiting", "Jobs that wait on the broker until they are due.", waiting)
        yield _by_job("due", "Those of them that are due, and not in their queue yet.", due)
        yield _by_job("lag_seconds", "How long the first of them is due.", lag)

    def _is_known(self, app: str, job: str) -> bool:
        """Tell whether names of app and job are those of an installed app, or of a hook's task."""
        runtime = self._app.runtime
        if "." in job:  # the name of a hook's task, of which there are a few
            is_app = not app or runtime.installations.definition(app) is not None
            return is_app and job in self._app.tasks
        return runtime.is_exported(app, job)


class MetricLabels:
    """Which labels a job's metrics have, for the life of a worker. Safe in threads."""

    __slots__ = ("_is_known", "_lock", "_most", "_pairs")

    def __init__(self, is_known: Callable[[str, str], bool], most: int = MOST) -> None:
        """Start with none.

        Args:
            is_known: whether a name of an app and one of a job are those of an installed app.
            most: how many pairs have labels of their own.
        """
        self._is_known: Final = is_known
        self._most: Final = most
        self._lock: Final = Lock()
        self._pairs: Final[set[Pair]] = set()

    def of(self, app: str, job: str) -> Pair:
        """Return the labels for an app's job: its names, UNKNOWN or OTHER."""
        pair = (app, job)
        if pair in self._pairs:
            return pair
        if not self._is_known(app, job):
            return UNKNOWN
        with self._lock:
            if pair not in self._pairs and len(self._pairs) >= self._most:
                return OTHER
            self._pairs.add(pair)
        return pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits of one app's job.

    Attributes:
        app_id: the installation.
        task: the task's name.
        count: how many wait.
        due: how many of them should have gone to their queue by now.
        lag: seconds for which the first of them is due.
    """

    app_id: str
    task: str
    count: int
    due: int
    lag: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is on its way.

    Attributes:
        waiting: what waits, by app id and task; of the 1,000 of these that are due first.
        waiting_in_all: how many wait.
        fetched: how many workers hold, or held when they died.
        queued: queue → how many are in it.
        failed: how many failed jobs are kept.
    """

    waiting: Sequence[Waiting]
    waiting_in_all: int
    fetched: int
    queued: Mapping[str, int]
    failed: int


def read_backlog(client: Any, keys: Keys, queues: Mapping[str, Sequence[str]]) -> Backlog:
    """Ask the broker, in two round trips.

    Args:
        client: of the broker.
        keys: its key names.
        queues: queue → the lists that it is.

    What the client raises when the broker does not answer is passed on.
    """
    first = client.pipeline(transaction=False)
    first.time()
    first.zrange(keys.heads, 0, _PARTITIONS - 1, withscores=True)
    first.hlen(keys.waiting)
    first.zrange(keys.leases, 0, _LEASES - 1)
    first.zcard(keys.failed_at)
    for lists in queues.values():
        for name in lists:
            first.llen(name)
    (seconds, micros), heads, in_all, leases, failed, *lengths = first.execute()
    now = seconds * 1000 + micros / 1000

    second = client.pipeline(transaction=False)
    for partition, head in heads:
        due = keys.due(partition.decode())
        second.zcard(due)
        if head <= now:
            second.zcount(due, "-inf", now)
    for owner in leases:
        second.hlen(keys.inflight(owner.decode()))
    replies = iter(second.execute())
    waiting = []
    for partition, head in heads:
        app_id, task = parse_partition(partition.decode())
        waiting.append(
            Waiting(
                app_id=app_id,
                task=task,
                count=next(replies),
                due=next(replies) if head <= now else 0,
                lag=max(0.0, now - head) / 1000,
            )
        )
    lengths_left = iter(lengths)
    return Backlog(
        waiting=waiting,
        waiting_in_all=in_all,
        fetched=sum(replies),
        queued={name: sum(next(lengths_left) for _ in lists) for name, lists in queues.items()},
        failed=failed,
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"posthog_jobs_{name}", text, value)


def _by_job(name: str, text: str, values: Mapping[Pair, float]) -> Metric:
    family = GaugeMetricFamily(f"posthog_jobs_{name}", text, labels=_LABELS)
    for pair, value in values.items():
        family.add_metric(pair, value)
    return family
