"""The Celery app that `celery -A posthog_jobs` finds: all parts, put together."""

from __future__ import annotations

import atexit
import copy
import os
import sys
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from amqp.exceptions import NotFound
from celery import Celery, signals
from kombu.exceptions import KombuError
from kombu.transport import TRANSPORT_ALIASES
from redis.exceptions import RedisError

from posthog_jobs import rabbitmq, transport
from posthog_jobs.embedded import EmbeddedServer
from posthog_jobs.errors import ConfigurationError, UnsupportedByBrokerError
from posthog_jobs.events import check_event
from posthog_jobs.handle import JobHandle
from posthog_jobs.redis import RedisServer
from posthog_jobs.registry import JobRegistry
from posthog_jobs.runtime import Runtime
from posthog_jobs.schedule import Schedule, unavailable
from posthog_jobs.sender import JobSender
from posthog_jobs.settings import Settings
from posthog_jobs.tasks import CaptureTask, OnEventTask, task_name
from posthog_jobs.transport.guards import warnings_for

if TYPE_CHECKING:
    from kombu import Connection

    from posthog_jobs.meta import Meta

#: Celery settings that differ from Celery's own defaults; a configuration may change them.
DEFAULTS: Final = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "worker_consumer": "posthog_jobs.worker:JobConsumer",
    "broker_connection_retry_on_startup": True,
}


transport.install()


class PostHogJobs(Celery):
    """A Celery app whose tasks are the jobs of the installed PostHog apps.

    Not made current and not shared: other Celery apps of the process are left alone.
    """

    registry_cls = JobRegistry

    def __init__(self, main: str = "posthog_jobs", **options: Any) -> None:
        """Make the app; its configuration is read when it is first needed.

        Args:
            main: the app's name.
            options: as Celery's.
        """
        self._runtime: Runtime | None = None
        self._broker = RedisServer(self.connection_for_write)
        self._sender = JobSender(self)
        self._runtime_lock = threading.RLock()
        self._delays = rabbitmq.Delays(self)
        super().__init__(main, **{"set_as_current": False, **options})
        self._tasks.app = self
        for task in (CaptureTask, OnEventTask):
            # a class of its own for each app, which is bound to it when the app is finalized
            self._tasks.register(type(task.__name__, (task,), {"__module__": task.__module__}))
        signals.import_modules.connect(self._on_import_modules, sender=self, weak=False)
        signals.worker_process_shutdown.connect(self._tear_down, weak=False)
        signals.worker_shutdown.connect(self._tear_down, weak=False)
        atexit.register(self._tear_down)

    @property
    def runtime(self) -> Runtime:
        """What runs jobs and hooks, made from the configuration at its first use.

        Raises:
            ConfigurationError: a setting cannot work.
        """
        if self._runtime is None:
            with self._runtime_lock:
                if self._runtime is None:
                    _check_json_only(self.conf)
                    settings = Settings.from_conf(self.conf)
                    server = self._broker
                    if settings.redis_url is not None:
                        server = RedisServer(partial(self._store_connection, settings.redis_url))
                    self._runtime = Runtime(settings, self._sender, server)
        return self._runtime

    def process_event(self, event: object) -> dict[str, Any] | None:
        """Pass an event through the `process_event` hooks of its team, in this process.

        Args:
            event: a mapping with `event`, its name, and optionally `properties`, `team_id` and
                what else PostHog's events have.

        Returns:
            The event that came out, or None if a hook dropped it.

        Raises:
            EventError, PayloadError: it is no event; no hook has run.
        """
        return self.runtime.process_event(event)

    def capture(self, event: object) -> JobHandle:
        """Hand an event to a worker, which runs `process_event` and then `on_event`.

        Args:
            event: as for `process_event`.

        Returns:
            A handle, as jobs have it.

        Raises:
            EventError, PayloadError: it is no event, or too large; nothing was enqueued.
            BrokerUnavailableError: the broker did not take it.
        """
        runtime, sender = self.runtime, self._sender
        checked = copy.deepcopy(
            check_event(event, default_team_id=runtime.settings.default_team_id)
        )
        size = sender.measure(checked)
        task_id = str(uuid4())
        now = datetime.now(UTC)

        def send() -> tuple[str, datetime]:
            sender.capture(checked, task_id, size)
            return task_id, now

        what = f"capturing {checked['event']!r}"
        return JobHandle(task_id, now, runtime.outbox, send, what)

    @property
    def schedule(self) -> Schedule:
        """What waits on the broker: to be listed, counted, cancelled and moved.

        Raises:
            UnsupportedByBrokerError: the broker is not Redis.
            BrokerUnavailableError: it does not answer.
        """
        with unavailable():
            client, keys = self._broker.connected()
        return Schedule(client, global_keyprefix=keys.global_keyprefix, revoke=self.control.revoke)

    def meta_for(self, app_id: str) -> Meta:
        """Return an installation's `meta`, to trigger its jobs from outside of the app.

        Raises:
            UnknownAppError, AppLoadError, AppDisabledError: the app cannot run.
        """
        return self.runtime.meta(app_id)

    def broker_warnings(self) -> list[str]:
        """Return what the broker is set up to lose, a sentence each; none for RabbitMQ."""
        try:
            client, _ = self._broker.connected()
            return warnings_for(client)
        except UnsupportedByBrokerError:
            return []
        except (RedisError, KombuError, OSError) as error:
            return [f"Redis does not tell how it keeps its data: {error}"]

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """Send a task, as Celery's own does; all tasks, retries and canvases pass here.

        On RabbitMQ its delay is rounded up to whole seconds.

        Raises:
            DelayTooLongError: RabbitMQ cannot hold it so long; nothing was sent.
            ConfigurationError: on RabbitMQ, the names of two queues would make it run twice, or
                the queue or its exchange is there and of another kind.
        """
        send = super().send_task
        delays = self._delays
        with rabbitmq.names_are_free():
            if not (countdown or eta) or not delays.are_native():
                if countdown and not eta:
                    # as Celery does, without the detour over its time zones, which takes 0.1 ms
                    due = datetime.now(UTC) + timedelta(seconds=countdown)
                    countdown, eta = None, due.isoformat()
                return send(name, args, kwargs, countdown, eta, *arguments, **options)
            countdown = delays.whole_seconds(countdown, eta)
            if countdown is None:
                return send(name, args, kwargs, None, None, *arguments, **options)
            router = options.pop("router", None) or self.amqp.router
            options["router"] = rabbitmq.DelayRouter(router, self.amqp.queues, delays)
            try:
                return send(name, args, kwargs, countdown, None, *arguments, **options)
            except NotFound:  # somebody has deleted what was declared, or reset the broker
                delays.forget()
                return send(name, args, kwargs, countdown, None, *arguments, **options)

    def check_delay(self, seconds: float) -> None:
        """Refuse a delay that the broker cannot hold.

        Args:
            seconds: the delay.

        Raises:
            DelayTooLongError: it is RabbitMQ, and the delay over 2^28 - 1 seconds.
        """
        self._delays.check(seconds)

    def _load_config(self) -> Any:
        conf = super()._load_config()
        # over Celery's defaults, under all that is configured
        conf.maps.insert(-1, {**DEFAULTS, **rabbitmq.defaults(conf)})
        return conf

    def _connection(self, url: str | list[str] | None, **options: Any) -> Connection:
        if url is None and not self.conf.broker_transport:
            server = EmbeddedServer.of_user()
            server.start()
            url = self.conf.broker_url = server.url
        scheme = _checked_scheme(url)
        given = options.get("transport_options") or {}
        if scheme in transport.ALIASES:
            # only connections of this app have the option, so only they get our transport
            options["transport_options"] = {**given, transport.OPTION: True}
        elif scheme in rabbitmq.TRANSPORTS:
            options["transport_options"] = rabbitmq.transport_options(self.conf, given)
        return super()._connection(url, **options)

    def _store_connection(self, url: str) -> Connection:
        if rabbitmq.is_configured(self.conf):
            # the broker's TLS, user and port are not this server's
            return self.amqp.Connection(url)
        return self.connection_for_write(url)

    def _on_import_modules(self, **_: Any) -> None:
        """Load the apps before the pool is made, so that `inspect registered` lists their jobs."""
        for installation in self.runtime.installations:
            for job_name in installation.definition.jobs:
                self.tasks[task_name(installation.definition.name, job_name)]

    def _tear_down(self, **_: Any) -> None:
        if self._runtime is not None:
            self._runtime.tear_down()


def _checked_scheme(url: str | list[str] | None) -> str:
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


def _check_json_only(conf: Any) -> None:
    for key in ("accept_content", "task_serializer"):
        value = conf[key]
        names = [value] if isinstance(value, str) else list(value)
        if not set(names) <= {"json", "application/json"}:
            raise ConfigurationError(
                f"{key} is {value!r}, and posthog_jobs takes JSON alone, since other formats can "
                f"name code to run; remove {key} from the configuration"
            )


def _configured() -> PostHogJobs:
    """Return the app with the configuration of $CELERY_CONFIG_MODULE, else of celeryconfig.py."""
    module = os.environ.get("CELERY_CONFIG_MODULE")
    if not module and Path("celeryconfig.py").is_file():
        module = "celeryconfig"
        if "" not in sys.path:  # the apps that it names stand beside it
            sys.path.insert(0, str(Path.cwd()))
    return PostHogJobs(config_source=module)


app: Final = _configured()
