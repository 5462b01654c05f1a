"""What the doctor asks of servers and workers: each thing once, when a check first needs it."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from posthog_jobs.broker.envelope import CAPTURE, EXPORT_EVENTS, FLUSH_EXPORT, ON_EVENT, task_name
from posthog_jobs.broker.rabbitmq import RabbitMQBroker
from posthog_jobs.broker.transport import OPTION
from posthog_jobs.broker.transport.channel import DurableChannel
from posthog_jobs.hooks.ticks import PERIODS
from posthog_jobs.operate.doctor.server import Server
from posthog_jobs.worker.control import REPORT, WorkerReport, broken, installed, skew

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kombu import Connection, Queue

    from posthog_jobs.broker.broker import Broker
    from posthog_jobs.broker.failures import Failures
    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.broker.schedule import Forecast, Schedule
    from posthog_jobs.operate.doctor.server import Connected, InFlight
    from posthog_jobs.settings import Settings
    from posthog_jobs.worker.runtime import Runtime

#: Seconds after the end of a lease within which a living worker has put its messages back.
GRACE: Final = 30

#: Transport options of a connection that only listens; the interval is in seconds, and as long
#: as it takes to close.
_BYSTANDER: Final = {OPTION: False, "visibility_timeout": 10**12, "polling_interval": 0.05}

#: Hook → the tasks that run it.
_TASKS: Final = {
    "process_event": (CAPTURE,),
    "process_event_batch": (CAPTURE,),
    "on_event": (CAPTURE, ON_EVENT),
    "on_snapshot": (CAPTURE, ON_EVENT),
    "export_events": (CAPTURE, FLUSH_EXPORT, EXPORT_EVENTS),
    **{hook: (f"posthog_jobs.{hook}",) for hook in PERIODS},
}


class Examined(Protocol):
    """What the doctor needs of a Celery app."""

    amqp: Any
    conf: Any
    control: Any

    @property
    def settings(self) -> Settings:
        """What is configured."""

    @property
    def runtime(self) -> Runtime:
        """Who is installed, in this process."""

    @property
    def broker(self) -> Broker:
        """The broker."""

    @property
    def schedule(self) -> Schedule:
        """What waits."""

    @property
    def failures(self) -> Failures:
        """What failed."""

    @property
    def broker_uri(self) -> str:
        """Where the broker is, without the password, once it was connected to."""

    def store_server(self) -> RedisServer | None:
        """Return the Redis of `posthog_jobs_redis_url`, or None where there is none."""

    def connection_for_read(self) -> Connection:
        """Return a connection to the broker."""

    def connection_for_write(self) -> Connection:
        """Return a connection to the broker, to send over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The workers of a broker, as far as they can be seen from here.

    Attributes:
        reports: of those that answered.
        others: names of those that answered, and have no such command.
        silent: leases that are alive and hold jobs, and whose owner did not answer.
    """

    reports: tuple[WorkerReport, ...]
    others: tuple[str, ...]
    silent: int

    @property
    def is_there(self) -> bool:
        """Whether anybody may be running jobs."""
        return bool(self.reports or self.others or self.silent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is on its way through a queue.

    Attributes:
        messages: how many are in it.
        waiting: how many wait in the schedule, and will go to it.
        consumers: how many consumers the broker knows of; only RabbitMQ knows.
        routed: whether jobs of this configuration go there; else it may be another app's.
    """

    messages: int = 0
    waiting: int = 0
    consumers: int = 0
    routed: bool = True


class Asked:
    """Broker and workers of an app.

    Attributes:
        app: the Celery app.
        server: its broker, if that is Redis.
        timeout: seconds to wait for the workers' answers.
    """

    def __init__(self, app: Examined, broker: Connected, timeout: float) -> None:
        """Ask nothing yet; see the attributes."""
        self.app: Final = app
        self.server: Final = Server(broker, coming=lambda: self.coming)
        self.timeout: Final = timeout

    @cached_property
    def is_rabbitmq(self) -> bool:
        """Whether the broker is RabbitMQ."""
        return isinstance(self.app.broker, RabbitMQBroker)

    @cached_property
    def coming(self) -> Forecast:
        """How many jobs that wait come due when."""
        return self.app.schedule.forecast()

    @cached_property
    def _rabbitmq(self) -> tuple[Mapping[str, Any], str]:
        with self.app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=max(1, len(connection.alt)), interval_start=0)
            return connection.connection.server_properties, connection.as_uri()

    @cached_property
    def properties(self) -> Mapping[str, Any]:
        """What RabbitMQ says of itself."""
        return self._rabbitmq[0]

    @cached_property
    def delays_natively(self) -> bool:
        """Whether delayed messages wait on RabbitMQ."""
        return self.app.broker.delays is not None

    @cached_property
    def crew(self) -> Crew:
        """The workers that answer until the timeout, and those that seem to be there."""
        # looked at before, too, for some will have ended
        holding = set() if self.is_rabbitmq else self.server.holders()
        with self._bystander() as connection:
            replies = self.app.control.broadcast(
                REPORT, connection=connection, reply=True, timeout=self.timeout
            )
        answers = {name: answer for reply in replies or [] for name, answer in reply.items()}
        parsed = {name: WorkerReport.parse(name, answer) for name, answer in answers.items()}
        reports = sorted(filter(None, parsed.values()), key=lambda report: report.name)
        if holding:
            holding &= self.server.holders()
        return Crew(
            reports=tuple(reports),
            others=tuple(name for name, report in parsed.items() if report is None),
            silent=len(holding - {report.lease for report in reports}),
        )

    def answer(self) -> str:
        """Wait for an answer of the broker, and return where it is, without the password."""
        if self.is_rabbitmq:
            return self._rabbitmq[1]
        self.server.client.ping()
        return self.app.broker_uri

    @property
    def knows_workers(self) -> bool:
        """Whether the workers could be asked; if not, nothing can be said that they decide."""
        return "crew" in vars(self)

    @property
    def skews(self) -> Mapping[str, float]:
        """Who → by how many seconds its clock is ahead of the broker's."""
        told = {each.name: each.skew for each in self.crew.reports if each.skew is not None}
        return {"here": skew(self.server.client), **told}

    @property
    def installed(self) -> Mapping[str, int]:
        """App id → version, in this process."""
        return installed(self.app.runtime.installations)

    @property
    def broken(self) -> Mapping[str, str]:
        """App id → why its code cannot be loaded, in this process."""
        return broken(self.app.runtime.installations)

    @property
    def lease_seconds(self) -> float:
        """How long a lease is, as it is configured here."""
        return self._option("visibility_timeout")

    @property
    def in_flight(self) -> InFlight:
        """The messages that workers hold, or held when they died."""
        return self.server.in_flight(stock_timeout=self._option("stock_visibility_timeout") + GRACE)

    @property
    def recently_failed(self) -> int:
        """How many failed within the last hour, and are neither replayed nor discarded."""
        failures, hour_ago = self.app.failures, datetime.now(UTC) - timedelta(hours=1)
        return max(0, failures.count() - failures.count(before=hour_ago))

    @cached_property
    def routed(self) -> Mapping[str, Queue]:
        """The queues that Celery's router sends jobs and events of installed apps to, by name."""
        names: set[str] = set()
        for installation in self.app.runtime.installations:
            definition = installation.definition
            names.update(task_name(definition.name, job) for job in definition.jobs)
            names.update(*(_TASKS.get(hook, ()) for hook in definition.hooks))
        route = self.app.amqp.router.route
        queues = {route({}, name)["queue"].name for name in names}
        return {name: self.app.amqp.queues[name] for name in sorted(queues)}

    @cached_property
    def loads(self) -> Mapping[str, Load]:
        """Queue → its load, of those that jobs go to, and of those that have something in them."""
        waits = Counter[str]() if self.is_rabbitmq else self.server.waiting()
        others = set() if self.is_rabbitmq else self.server.declared()
        names = {*self.routed, *waits}
        found = {}
        with self.app.connection_for_read() as connection:
            for name in sorted(names | others):
                messages = consumers = 0
                try:
                    with connection.channel() as channel:  # RabbitMQ closes it if there is none
                        _, messages, consumers = channel.queue_declare(queue=name, passive=True)
                except connection.channel_errors:
                    pass
                if name in names or messages:
                    found[name] = Load(
                        messages=messages,
                        waiting=waits[name],
                        consumers=consumers,
                        routed=name in names,
                    )
        return found

    @cached_property
    def consumed(self) -> set[str]:
        """The queues that workers say they consume; others than ours are asked only if needed."""
        found = {queue for report in self.crew.reports for queue in report.queues}
        if self.crew.others and not set(self.loads) <= found:
            with self._bystander() as connection:
                inspect = self.app.control.inspect(timeout=self.timeout, connection=connection)
                replies = inspect.active_queues() or {}
            found |= {queue["name"] for queues in replies.values() for queue in queues}
        return found

    @contextmanager
    def _bystander(self) -> Iterator[Connection]:
        """A connection that only listens.

        One with our transport would promote and put back while it waits for answers, and so mend
        what the doctor is to see. One with kombu's own would put back what stock workers hold,
        once they do for as long as our lease: hence the endless timeout.
        """
        with self.app.connection_for_write() as connection:
            given = connection.transport_options
            if OPTION in given:
                connection.transport_options = {**given, **_BYSTANDER}
            yield connection

    def _option(self, name: str) -> float:
        """A transport option as it is configured here, or its default."""
        options = self.app.conf.broker_transport_options
        value: float = options.get(name, getattr(DurableChannel, name))
        return value
