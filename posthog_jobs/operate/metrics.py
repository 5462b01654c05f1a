"""Metrics of a worker and its broker for Prometheus, served to this machine alone.

Needs the extra `metrics`. All counting is done by the worker's parent, which learns of the end of
each job in every pool; so there is one registry, and no files between processes.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery.utils.log import get_logger
from celery.worker import state
from kombu.exceptions import KombuError
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from redis.exceptions import RedisError

from posthog_jobs.broker.failure import Reason
from posthog_jobs.errors import UnsupportedByBrokerError
from posthog_jobs.operate.backlog import read_backlog
from posthog_jobs.operate.metric_labels import OTHER, UNKNOWN, MetricLabels
from posthog_jobs.worker.job_ends import Result
from posthog_jobs.worker.requests import DiscreetRequest
from posthog_jobs.worker.tasks import parse_task_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client.core import Metric

    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.broker.transport.lease import Lease
    from posthog_jobs.celery import PostHogJobs
    from posthog_jobs.operate.backlog import Backlog
    from posthog_jobs.operate.metric_labels import Pair
    from posthog_jobs.worker.job_ends import JobEnd

logger = get_logger(__name__)

#: What is served says how much of what runs here, which is nobody's business elsewhere.
HOST: Final = "127.0.0.1"

_LABELS: Final = ("app", "job")
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """What a worker counts, and what it asks the broker for when it is scraped."""

    def __init__(
        self,
        app: PostHogJobs,
        broker: RedisServer,
        queues: Callable[[], Mapping[str, Sequence[str]]],
    ) -> None:
        """Count from now on; nothing is served yet.

        Args:
            app: the Celery app.
            broker: the broker, with timeouts that are shorter than a scrape may take.
            queues: gives queue → the lists that it is, for the queues that the worker consumes.
        """
        self.labels: Final = MetricLabels(app_knows(app))
        self.registry: Final = CollectorRegistry(support_collectors_without_names=True)
        self._close: Callable[[], None] | None = None

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"posthog_jobs_{name}", text, labels, registry=self.registry)

        self._ran = counter("ran", "Ended runs of jobs, by result.", *_LABELS, "result")
        self._failed = counter("failed", "Jobs kept as failed, by reason.", *_LABELS, "reason")
        self._retried = counter("retried", "Jobs sent again, due later.", *_LABELS)
        self._promoted = counter("promoted", "Jobs moved to their queue when they were due.")
        self._duration = Histogram(
            "posthog_jobs_duration_seconds",
            "How long jobs ran.",
            _LABELS,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._lateness = Histogram(
            "posthog_jobs_lateness_seconds",
            "How long after they were due, or sent, jobs started.",
            _LABELS,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Gauges(app, broker, queues, self.labels))

    def count(self, end: JobEnd) -> None:
        """Count the end of a job; from any thread."""
        pair = self.labels.of(end.app, end.job)
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


class _Gauges:
    """Asks worker and broker for what is true just now; each scrape does."""

    def __init__(
        self,
        app: PostHogJobs,
        broker: RedisServer,
        queues: Callable[[], Mapping[str, Sequence[str]]],
        labels: MetricLabels,
    ) -> None:
        self._app: Final = app
        self._broker: Final = broker
        self._queues: Final = queues
        self._labels: Final = labels

    def describe(self) -> Iterable[Metric]:
        """Promise nothing, so that to be registered asks nobody."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges; those of a broker that does not answer are left out."""
        yield self._in_flight()
        try:
            backlog = read_backlog(*self._broker.connected(), self._queues())
        except UnsupportedByBrokerError:
            return
        except (RedisError, KombuError, OSError) as error:
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
            if isinstance(request, DiscreetRequest):
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


def app_knows(app: PostHogJobs) -> Callable[[str, str], bool]:
    """Return what tells whether names of app and job are those of an installed app or a hook."""

    def is_known(app_name: str, job: str) -> bool:
        runtime = app.runtime
        if "." in job:  # the name of a hook's task, of which there are a few
            is_app = not app_name or runtime.installations.definition(app_name) is not None
            return is_app and job in app.tasks
        return runtime.is_exported(app_name, job)

    return is_known


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"posthog_jobs_{name}", text, value)


def _by_job(name: str, text: str, values: Mapping[Pair, float]) -> Metric:
    family = GaugeMetricFamily(f"posthog_jobs_{name}", text, labels=_LABELS)
    for pair, value in values.items():
        family.add_metric(pair, value)
    return family
