"""What a Celery worker needs from us: tasks found on first sight, no message ever dropped."""

from __future__ import annotations

from threading import get_ident
from time import monotonic
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Protocol

from amqp.exceptions import PreconditionFailed
from celery.bootsteps import RUN
from celery.exceptions import NotRegistered, WorkerTerminate
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

import posthog_jobs.worker.control  # noqa: F401  # registers what workers answer to `jobs doctor`
from posthog_jobs.apps.registry import INTERVAL
from posthog_jobs.broker.envelope import is_to_blame
from posthog_jobs.broker.failure import Reason
from posthog_jobs.broker.rabbitmq import name_is_taken
from posthog_jobs.broker.redis import UNREACHABLE
from posthog_jobs.broker.transport import OPTION, WRITES
from posthog_jobs.broker.transport.acknowledgement import Message
from posthog_jobs.broker.transport.channel import DurableChannel
from posthog_jobs.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    PostHogJobsError,
    UnsupportedByBrokerError,
)
from posthog_jobs.worker import job_ends
from posthog_jobs.worker.pools import can_cancel, confirm, leave_behind, recall, unlimited_jobs
from posthog_jobs.worker.requests import has_request, keep, report_failures

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

    from posthog_jobs.broker.transport.lease import Lease

logger = get_logger(__name__)

#: Seconds between two attempts to connect, at most.
_LONGEST_INTERVAL = 3

#: Seconds after which a tick that was cancelled, or lost with its worker's connection, is back.
_TICKS_CHECKED_EVERY = 60


def _fetch_more() -> None:
    """Do nothing, in the event loop, which looks for messages after it."""


class Metrics(Protocol):
    """Counts what becomes of a worker's jobs, and serves that."""

    def count_unreadable(self, reason: Reason) -> None:
        """Count a message that is kept as failed because no job can be made of it."""

    def follow(self, lease: Lease) -> None:
        """Count what a lease promotes, and what it is told cannot be read."""

    def serve(self, port: int) -> None:
        """Serve the metrics from now on, if they are not yet."""


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

    connection: Connection | None
    first_connection_attempt: bool
    _looking: Any = None
    _ticking: Any = None
    _has_parted = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._warned: set[str] = set()
        self._loop_thread: int | None = None
        super().__init__(*args, **kwargs)
        job_ends.replace_celerys()
        self._metrics: Metrics | None = self.app.count_metrics(self._queue_lists)

    def Strategies(self) -> JobStrategies:  # noqa: N802  # Celery's name for the factory
        """Return the strategies; Celery calls this once, when the consumer is made."""
        return JobStrategies(self)

    def on_ready(self) -> None:
        """Follow the store; warn, once ready, of what the broker may lose; see to the apps."""
        super().on_ready()
        self._follow_store()
        self._serve_metrics()
        for warning in self.app.broker_warnings():
            logger.warning("%s", warning)
        if self._ticking is not None:  # from before the connection was lost
            self._ticking.cancel()
        self.see_to_apps()
        self._ticking = self.timer.call_repeatedly(_TICKS_CHECKED_EVERY, self.see_to_apps)

    def see_to_apps(self) -> None:
        """Do what installed apps need of a worker: exports, ticks, a word on what it cannot do."""
        pool = type(self.pool).__module__
        for name, warning in unlimited_jobs(self.app.runtime.installations, pool).items():
            self._warn_once(name, warning)
        try:
            self.app.runtime.look_for_exports()
        except ConfigurationError as error:
            self._warn_once("exports", f"Each event is exported by itself: {error}")
        except PostHogJobsError as error:
            logger.warning("Exports whose flush was lost are looked for later: %s", error)
        try:
            self.app.ticks.see_to_all()
        except UnsupportedByBrokerError as error:
            self._warn_once("ticks", f"No run_every_… runs: {error}; set posthog_jobs_redis_url")
        except BrokerUnavailableError as error:
            logger.warning("The next ticks are not scheduled, which is tried again: %s", error)

    def _warn_once(self, what: str, warning: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", warning)

    def on_close(self) -> None:
        """Forget what has not begun, as Celery does, and see to it that none of that begins."""
        self._part_from_pool()
        super().on_close()
        self._has_parted = False

    def _part_from_pool(self) -> None:
        """See to it that of what the pool was handed, only that runs which it has begun."""
        if self._has_parted:
            return
        self._has_parted = True
        semaphore = self.controller.semaphore
        if semaphore is not None:
            semaphore.clear()  # of what waits for a place in the pool
        confirm(self.pool, self.hub)
        recall(self.pool)

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Acknowledge at once, and have the event loop fetch more.

        That loop stands still while the worker stops, or connects again: until then it would hold
        the acknowledgements of a pool of threads, and what they are for might be put back.
        """
        if not isinstance(getattr(p, "__self__", None), Message):
            return super().call_soon_ack(p, *args, **kwargs)
        done = p(*args, **kwargs)  # which may be called from any thread
        if get_ident() != self._loop_thread and self.blueprint.state == RUN:
            self.call_soon(_fetch_more)
        return done

    def cancel_active_requests(self) -> None:
        """End what runs, since the worker is to end at once; its messages are put back.

        Raises:
            WorkerTerminate: the pool cannot end it. Raised in the middle of a solo worker's job, it
                ends that; threads are left behind.
        """
        if can_cancel(self.pool) or not state.active_requests:
            super().cancel_active_requests()
            return
        for request in list(state.active_requests):
            logger.warning("%s is cut off, and runs again", request.humaninfo())
        leave_behind(self.pool)
        raise WorkerTerminate

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the lost connection, and let the steps that stop now still see what it was.

        What has not begun is put back with that, and must not begin any more.
        """
        self._part_from_pool()
        connection = self.connection
        super().on_connection_error_after_connected(exc)
        self.connection = connection  # with None, Celery's own steps log a traceback each

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, however long the broker is away or refuses, and log that once, and its end."""
        conf = self.app.conf
        if OPTION in conn.transport_options:
            conn.transport_options[WRITES] = True
        retry = (
            conf.broker_connection_retry_on_startup
            if self.first_connection_attempt
            else conf.broker_connection_retry
        )
        if not retry:
            return super().ensure_connected(conn)
        away_since: float | None = None

        def on_error(error: Exception, _: float) -> None:
            nonlocal away_since
            if away_since is None:
                away_since = monotonic()
                logger.error(
                    "Cannot connect to %s: %s. Trying again until it answers.", conn.as_uri(), error
                )

        conn = conn.ensure_connection(
            on_error,
            conf.broker_connection_max_retries,
            interval_start=0.2,
            interval_step=0.2,
            interval_max=_LONGEST_INTERVAL,
            callback=maybe_shutdown,
        )
        if away_since is not None:
            logger.warning(
                "Connected to %s again after %.0f s.", conn.as_uri(), monotonic() - away_since
            )
        self.first_connection_attempt = False
        return conn

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return what takes in each message; one that cannot be read is kept as failed.

        What is raised later, as by a pool that has no thread left, ends the worker, which puts back
        what it has not run.
        """
        handle = super().create_task_handler(*args, **kwargs)
        # kombu counts KeyError among them, which a message without an id raises as well
        lost = [error for error in self.connection_errors if error is not KeyError]
        passes = (*lost, *UNREACHABLE)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except passes:
                raise
            except Exception as error:
                if message.acknowledged:
                    # as with a plain task that was acknowledged before it ran, and then named
                    # another one to run which is none
                    logger.exception("Task %s ran, and its end failed", message.headers["id"])
                elif not has_request(message) and is_to_blame(message.body, error):
                    self._keep(message, Reason.UNDECODABLE, error)
                else:
                    raise

        return on_task_received

    def on_unknown_message(self, body: object, message: Any) -> None:  # noqa: ARG002
        """Keep a message that is no task's."""
        self._keep(message, Reason.UNDECODABLE, TypeError("the message names no task"))

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Keep a message of a task that nobody knows."""
        name = message.headers.get("task")
        self._keep(message, Reason.UNKNOWN_JOB, NotRegistered(f"there is no task {name!r}"))

    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Keep a message that no task can be made of."""
        self._keep(message, Reason.UNDECODABLE, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Keep a message whose body cannot be read."""
        self._keep(message, Reason.UNDECODABLE, exc)

    def _keep(self, message: Any, reason: Reason, error: Exception) -> None:
        """Keep a message that cannot be run, and log that without its contents."""
        traceback = "".join(format_exception(error))
        task_id = keep(self.app, message, reason, error, worker=self.hostname, traceback=traceback)
        if self._metrics is not None:
            self._metrics.count_unreadable(reason)
        logger.error(
            "A message that cannot be run is kept as failed, under the id %s: %s (%s)",
            task_id,
            reason.value,
            type(error).__name__,
        )
        message.ack_log_error(logger, self.connection_errors)

    def start(self) -> None:
        """Consume until the worker stops.

        Raises:
            ConfigurationError: RabbitMQ has one of the queues, but of another kind; or the pool
                cannot be scaled.
        """
        if self.controller.autoscale and not hasattr(self.pool, "grow"):
            raise ConfigurationError(
                f"--autoscale works with no pool of {type(self.pool).__module__}; leave it out, or "
                "use -P prefork; a pool of threads starts them as they are needed, up to "
                "--concurrency"
            )
        self._loop_thread = get_ident()
        report_failures(self.pool)
        self.pool._does_debug = False  # noqa: SLF001  # Celery's debug log quotes the arguments
        self.app.runtime.registry.on_change(lambda: self.call_soon(self._take_change))
        try:
            super().start()
        except PreconditionFailed as error:
            raise name_is_taken(error) from error
        finally:
            self.app.runtime.registry.seen.forget()

    def _follow_store(self) -> None:
        """Learn of changes with every turn, and take them twice a second if nothing runs."""
        runtime = self.app.runtime
        lease = getattr(self.task_consumer.channel, "lease", None)
        if lease is not None and runtime.settings.redis_url is None:
            lease.on_apps_version = runtime.registry.seen.note
        if self._looking is not None:  # from before the connection was lost
            self._looking.cancel()
        self._looking = self.timer.call_repeatedly(INTERVAL, runtime.registry.refresh)

    def _serve_metrics(self) -> None:
        if self._metrics is None:
            return
        lease = getattr(self.task_consumer.channel, "lease", None)
        if lease is not None:
            self._metrics.follow(lease)
        self._metrics.serve(self.app.settings.metrics_port)

    def _queue_lists(self) -> dict[str, list[str]]:
        """Return queue → its lists, of the queues that are consumed now."""
        consumer = self.task_consumer
        channel = consumer and consumer.channel
        if not isinstance(channel, DurableChannel):  # while the connection is lost
            return {}
        return {queue.name: channel.lists_of(queue.name) for queue in list(consumer.queues)}

    def _take_change(self) -> None:
        for name in self.app.tasks.register_jobs(self.app.runtime.installations):
            self.strategies.pop(name, None)
        self.see_to_apps()
