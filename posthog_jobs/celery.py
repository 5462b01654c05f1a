"""The Celery app that `celery -A posthog_jobs` finds: all parts, put together."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from amqp.exceptions import PreconditionFailed
from celery import Celery, signals
from celery.utils.log import get_multiprocessing_logger

from posthog_jobs.apps.store import RedisStore
from posthog_jobs.broker import rabbitmq, transport
from posthog_jobs.broker.broker import RedisBroker
from posthog_jobs.broker.embedded import EmbeddedServer
from posthog_jobs.broker.schedule import Schedule
from posthog_jobs.broker.sender import JobSender
from posthog_jobs.broker.transport.sending import MessageMaker, Sending, SpareProducers, this_thread
from posthog_jobs.broker.transport.transport import redis_server
from posthog_jobs.hooks.exports import Exporter
from posthog_jobs.hooks.ticks import Ledger, Ticks
from posthog_jobs.meta.redis_stores import redis_stores
from posthog_jobs.operate.apps import Apps
from posthog_jobs.redaction import guard
from posthog_jobs.settings import Settings
from posthog_jobs.worker.configuration import (
    DEFAULTS,
    Conf,
    check_formats,
    check_not_eager,
    checked_scheme,
    retry_policy,
)
from posthog_jobs.worker.deliveries import Deliveries
from posthog_jobs.worker.hook_tasks import HOOK_TASKS
from posthog_jobs.worker.runtime import Runtime
from posthog_jobs.worker.tasks import DurableTask, JobRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from logging import Logger

    from kombu import Connection

    from posthog_jobs.broker.broker import Broker
    from posthog_jobs.broker.failures import Failures
    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.jobs.trigger import JobHandle
    from posthog_jobs.meta.meta import Meta
    from posthog_jobs.operate.doctor import Finding
    from posthog_jobs.operate.metrics import Metrics
    from posthog_jobs.worker.job_ends import JobEnd

transport.install()


class PostHogJobs(Celery):
    """A Celery app whose tasks are the jobs of the installed PostHog apps.

    Not made current and not shared: other Celery apps of the process are left alone.
    """

    amqp_cls = MessageMaker
    _conf: Any
    registry_cls = JobRegistry
    task_cls = "posthog_jobs.worker.tasks:PlainTask"

    def __init__(self, main: str = "posthog_jobs", **options: Any) -> None:
        """Make the app; its configuration is read when it is first needed.

        Args:
            main: the app's name.
            options: as Celery's.
        """
        self._making = threading.RLock()
        self._made_runtime: Runtime | None = None
        #: Told of each end of a job in this worker; the log is told anyway.
        self.on_job_end: Callable[[JobEnd], object] | None = None
        # without what sending sets: how long a job may take to be sent is no time for a reply
        self._broker = redis_server(super().connection_for_write)
        self._sender = JobSender(self)
        self._spares = SpareProducers(self.connection_for_write)
        super().__init__(main, **{"set_as_current": False, **options})
        self._conf = Conf.of(self._conf)
        self._tasks.app = self
        for task in HOOK_TASKS:
            # a class of its own for each app, which is bound to it when the app is finalized
            self._tasks.register(type(task.__name__, (task,), {"__module__": task.__module__}))
        signals.import_modules.connect(self._register_jobs, sender=self, weak=False)
        self._pid = os.getpid()
        signals.worker_process_init.connect(self._on_child, weak=False)
        signals.worker_process_shutdown.connect(self._tear_down, weak=False)
        signals.worker_shutdown.connect(self._tear_down, weak=False)
        atexit.register(self._tear_down)

    @cached_property
    def settings(self) -> Settings:
        """What the `posthog_jobs_` keys of the configuration say.

        Raises:
            ConfigurationError: a setting cannot work.
        """
        return Settings.from_conf(self.conf)

    @cached_property
    def retry_policy(self) -> dict[str, Any]:
        """How often kombu tries to send a message, within the time for it."""
        return retry_policy(self.conf.task_publish_retry_policy, self.settings.enqueue_timeout)

    @cached_property
    def runtime(self) -> Runtime:
        """What runs jobs and hooks, made from the configuration at its first use.

        Raises:
            ConfigurationError: a setting cannot work.
        """
        with self._making:  # several threads may ask first
            made = self._made_runtime
            if made is None:
                check_formats(self.conf)
                check_not_eager(self.conf)
                made = self._made_runtime = Runtime(
                    self.settings,
                    self._sender,
                    redis_stores(self.server, self.settings.storage_url),
                    store=RedisStore(self.server),
                    exporter=Exporter(self._sender, self.server),
                )
        return made

    @cached_property
    def server(self) -> RedisServer:
        """The Redis of the installed apps and what they keep: the broker's, or another one."""
        return self.store_server() or self._broker

    @cached_property
    def broker(self) -> Broker:
        """The broker, as it is configured."""
        schedule = Schedule(self._broker, revoke=self._revoke)
        if rabbitmq.is_configured(self.conf):
            return rabbitmq.RabbitMQBroker(
                self,
                schedule,
                self.server,
                max_failures=self.settings.max_failures,
                retry_policy=self.retry_policy,
            )
        return RedisBroker(self._broker, schedule)

    def process_event(self, event: object) -> dict[str, Any] | None:
        """Pass an event through hooks, as `posthog_jobs.process_event`."""
        return self.runtime.process_event(event)

    def process_events(self, events: Iterable[object]) -> list[dict[str, Any]]:
        """Pass events through hooks, as `posthog_jobs.process_events`."""
        return self.runtime.process_events(events)

    def capture(self, event: object) -> JobHandle:
        """Hand an event to a worker, as `posthog_jobs.capture`."""
        return self.runtime.capture(event)

    @property
    def schedule(self) -> Schedule:
        """What waits on the broker: to be listed, counted, cancelled and moved."""
        return self.broker.schedule

    @property
    def apps(self) -> Apps:
        """Who is installed: to be listed, installed, configured, disabled and uninstalled.

        Its methods raise StoreUnavailableError when Redis does not answer.
        """
        return Apps(
            self.runtime,
            RedisStore(self.server),
            schedule=lambda: self.schedule,
            purge=self.runtime.metas.purge,
            stop_ticks=self.ticks.stop,
        )

    @property
    def failures(self) -> Failures:
        """What failed, kept on the broker: to be listed, counted, replayed and discarded."""
        return self.broker.failures

    @property
    def deliveries(self) -> Deliveries:
        """Counts how often a job was delivered again."""
        broker, most = self.broker, self.settings.max_deliveries
        return Deliveries(broker.records, most, forgets=not broker.ends_counts)

    @property
    def ticks(self) -> Ticks:
        """The runs of `run_every_minute` and its like."""
        schedule = self.schedule if self.broker.knows_keys else None
        # the broker's if it is Redis, though there be another one: by its clock ticks are due
        ledger, tasks = Ledger(self.broker.records), self.tasks
        return Ticks(self.runtime, ledger, schedule, lambda t, key: tasks[t.task].send(t, key))

    def meta_for(self, app_id: str) -> Meta:
        """Return an installation's `meta`, to trigger its jobs from outside of the app.

        Raises:
            UnknownAppError, AppLoadError, AppDisabledError: the app cannot run.
        """
        return self.runtime.meta(app_id)

    @property
    def broker_uri(self) -> str:
        """Where the broker is, without the password: of several, the one in use."""
        return self._broker.uri

    def doctor(self, *, timeout: float = 2.0) -> list[Finding]:
        """Return what `celery -A posthog_jobs jobs doctor` finds at the broker and the workers.

        Args:
            timeout: seconds to wait for the workers' answers.
        """
        from posthog_jobs.operate.doctor import examine  # noqa: PLC0415  # of no use to a producer

        return examine(self, self._broker.connected, timeout=timeout)

    def count_metrics(self, queues: Callable[[], Mapping[str, Sequence[str]]]) -> Metrics | None:
        """Count the ends of jobs in this worker, if `posthog_jobs_metrics_port` is set.

        Args:
            queues: gives queue → the lists that it is, for the queues that the worker consumes.

        Raises:
            ConfigurationError: it is set, and the extra `metrics` is not installed.
        """
        if self.settings.metrics_port is None:
            return None
        from posthog_jobs.operate.metrics import SCRAPE_LIMITS, Metrics  # noqa: PLC0415  # of an extra

        connect = partial(self.connection_for_write, transport_options=SCRAPE_LIMITS)
        metrics = Metrics(self, redis_server(connect), queues)
        self.on_job_end = metrics.count
        signals.worker_shutdown.connect(metrics.close)
        return metrics

    def broker_warnings(self) -> list[str]:
        """Return what the broker is set up to lose, a sentence each; none for RabbitMQ."""
        from posthog_jobs.operate.doctor import warnings_for  # noqa: PLC0415  # as above

        return warnings_for(self._broker.connected)

    def send_task(  # noqa: PLR0913, PLR0917  # as Celery has it
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        task_id: str | None = None,
        *arguments: Any,
        sending: Sending | None = None,
        **options: Any,
    ) -> Any:
        """Send a task, as Celery's own does; all tasks, retries and canvases pass here.

        On RabbitMQ its delay is rounded up to whole seconds.

        Args:
            name: of the task.
            args: its arguments.
            kwargs: its named arguments.
            countdown: seconds until it is due.
            eta: when it is due.
            task_id: its id, if it has one.
            arguments: what else Celery's takes, in its order.
            options: what else Celery's takes, by name.
            sending: what tells the caller what became of this message, and is entered.

        Raises:
            JobCallError: one of our tasks does not take such arguments; nothing was sent.
            DelayTooLongError: RabbitMQ cannot hold it so long; nothing was sent.
            ConfigurationError: on RabbitMQ, the names of two queues would make it run twice, or
                the queue or its exchange is there and of another kind.
        """
        task = options.get("task_type") or self.tasks.known(name)
        if isinstance(task, DurableTask):
            options = task.options_for(args or (), kwargs or {}, options)
        options.setdefault("retry_policy", self.retry_policy)
        send = partial(super().send_task, name, args, kwargs)
        delays = self.broker.delays
        message = sending or Sending(task_id or str(uuid4()), self.settings.enqueue_timeout)
        arguments = (message.id, *arguments)
        try:
            with nullcontext() if sending else message:
                if delays is not None and (countdown or eta):
                    return delays.send(send, countdown, eta, *arguments, **options)
                if countdown and not eta:
                    # as Celery does, without the detour over its time zones, which takes 0.1 ms
                    due = datetime.now(UTC) + timedelta(seconds=countdown)
                    countdown, eta = None, due.isoformat()
                return send(countdown, eta, *arguments, **options)
        except PreconditionFailed as error:
            raise rabbitmq.name_is_taken(error) from error

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Return what publishes, as Celery's own does.

        What is sent while another message is being sent, as by a signal's handler, takes none of
        the pool: all may belong to who waits for it, and the lock to what the handler interrupted.
        """
        message = this_thread.sending
        if producer is None and message is not None and message.around is not None:
            return self._spares.acquire()
        return super().producer_or_acquire(producer)

    def connection_for_write(self, url: Any = None, *arguments: Any, **options: Any) -> Connection:
        """Return a connection to send over, which waits for no answer longer than it shall."""
        timeout = self.settings.enqueue_timeout
        connection = super().connection_for_write(url, *arguments, **options)
        if connection.transport_options.get(transport.OPTION):
            for name in ("socket_timeout", "socket_connect_timeout"):
                connection.transport_options.setdefault(name, timeout)
            connection.connect_timeout = timeout  # which ends kombu's retries, too
        return connection

    def _load_config(self) -> Any:
        conf = super()._load_config()
        if not isinstance(conf, Conf):
            conf = self._conf = Conf.of(conf)
        # over Celery's defaults, under all that is configured
        conf.maps.insert(-1, {**DEFAULTS, **rabbitmq.defaults(conf)})
        return conf

    def _connection(self, url: str | list[str] | None, **options: Any) -> Connection:
        if url is None and not self.conf.broker_transport:
            server = EmbeddedServer.of_user()
            server.start()
            url = self.conf.broker_url = server.url
        scheme = checked_scheme(url)
        given = options.get("transport_options") or {}
        if scheme in transport.ALIASES:
            # only connections of this app have the option, so only they get our transport
            most = self.conf.get("posthog_jobs_max_failures")
            limits = {} if most is None else {"max_failures": most}
            options["transport_options"] = {**limits, **given, transport.OPTION: True}
        elif scheme in rabbitmq.TRANSPORTS:
            options["transport_options"] = rabbitmq.transport_options(self.conf, given)
        return super()._connection(url, **options)

    def store_server(self) -> RedisServer | None:
        """Return the Redis of `posthog_jobs_redis_url`, or None where there is none."""
        url = self.settings.redis_url
        return None if url is None else redis_server(partial(self._store_connection, url))

    def _store_connection(self, url: str) -> Connection:
        if isinstance(self.broker, rabbitmq.RabbitMQBroker):
            # the broker's TLS, user and port are not this server's
            return self.amqp.Connection(url)
        return self.connection_for_write(url)

    def _revoke(self, task_id: str) -> None:
        # not made sooner: a signal's handler that sends may interrupt a process' first send
        self.control.revoke(task_id)

    def _register_jobs(self, **_: Any) -> None:
        """Load the apps before the pool is made, so that `inspect registered` lists their jobs."""
        self.tasks.register_jobs(self.runtime.installations)

    def _on_child(self, **_: Any) -> None:
        """Let a pool's child take changes though no job comes to it."""
        if self._made_runtime is not None and self._pid != os.getpid():
            follow = self._made_runtime.registry.follow
            threading.Thread(target=follow, name="posthog_jobs.follow", daemon=True).start()

    def _tear_down(self, **_: Any) -> None:
        if self._made_runtime is not None:
            self._made_runtime.tear_down()


def _configured() -> PostHogJobs:
    """Return the app as $CELERY_CONFIG_MODULE configures it, else celeryconfig.py."""
    module = os.environ.get("CELERY_CONFIG_MODULE")
    if not module and Path("celeryconfig.py").is_file():
        module = "celeryconfig"
    if "" not in sys.path:  # installed apps may stand in this folder; Celery's own entry is for now
        sys.path.insert(0 if module == "celeryconfig" else len(sys.path), str(Path.cwd()))
    return PostHogJobs(config_source=module)


def _guard_logs(*, logger: Logger, **_: Any) -> None:
    """Let Celery's handlers write no secret; it calls this once they are there."""
    guard(logger)
    guard(get_multiprocessing_logger())


signals.after_setup_logger.connect(_guard_logs, weak=False)
signals.after_setup_task_logger.connect(_guard_logs, weak=False)

app: Final = _configured()
