"""One look at everything: which checks there are for which broker, and in which order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from posthog_jobs.broker import rabbitmq
from posthog_jobs.broker.transport.channel import DurableChannel
from posthog_jobs.errors import PostHogJobsError
from posthog_jobs.operate.doctor import (
    clocks,
    failed,
    guards,
    inflight,
    lag,
    queues,
    report,
    server,
    workers,
)
from posthog_jobs.operate.doctor import rabbitmq as rabbit
from posthog_jobs.operate.doctor.findings import Verdict, fail, ok, warn
from posthog_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from posthog_jobs.broker.redis import Keys, RedisServer
    from posthog_jobs.broker.schedule import Forecast
    from posthog_jobs.celery import PostHogJobs
    from posthog_jobs.operate.doctor.findings import Finding
    from posthog_jobs.operate.doctor.workers import Crew

_STORED: Final = "values of meta.storage"


class Examination:
    """Looks at the broker and the workers of an app, once.

    Args:
        app: the Celery app.
        broker: its broker, if that is Redis.
        store: returns the Redis of `posthog_jobs_redis_url`, or None where there is none.
        timeout: seconds to wait for the workers' answers.
    """

    def __init__(
        self,
        app: PostHogJobs,
        *,
        broker: RedisServer,
        store: Callable[[], RedisServer | None],
        timeout: float,
    ) -> None:
        self._app: Final = app
        self._broker: Final = broker
        self._store: Final = store
        self._timeout: Final = timeout

    def findings(self) -> list[Finding]:
        """Return what every check found, in the order of the table; if the broker is away, that."""
        checks = self._on_rabbitmq if rabbitmq.is_configured(self._app.conf) else self._on_redis
        return [*checks(), *self._of_store()]

    # -- what the checks need; each is looked at once --------------------------------------------

    @cached_property
    def _client(self) -> Any:
        return self._broker.connected()[0]

    @cached_property
    def _keys(self) -> Keys:
        return self._broker.connected()[1]

    @cached_property
    def _crew(self) -> Crew:
        if rabbitmq.is_configured(self._app.conf):
            return workers.call(self._app, None, None, timeout=self._timeout)
        return workers.call(self._app, self._client, self._keys, timeout=self._timeout)

    @property
    def _asked(self) -> bool:
        """Whether the workers could be asked; if not, nothing can be said that they decide."""
        return "_crew" in vars(self)

    @cached_property
    def _coming(self) -> Forecast:
        return self._app.schedule.forecast()

    @cached_property
    def _properties(self) -> Mapping[str, Any]:
        """What RabbitMQ says of itself."""
        with self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            properties: Mapping[str, Any] = connection.connection.server_properties
            return properties

    # -- checks ----------------------------------------------------------------------------------

    def _on_redis(self) -> Iterator[Finding]:
        yield (reached := attempt("broker", lambda: self._reach(self._client.ping)))
        if reached.verdict is Verdict.FAIL:
            return
        client = self._client
        yield attempt("version", lambda: guards.version(client.info()))
        yield attempt("persistence", lambda: guards.persistence(client, client.info()))
        yield attempt("eviction", lambda: guards.eviction(client.info()))
        yield attempt("memory", self._memory)
        yield from self._of_workers()
        if not self._asked:
            return
        yield attempt("clocks", self._clocks)
        configured = self._option("visibility_timeout")
        yield attempt("lease", lambda: workers.leases(self._crew, configured))
        yield attempt("queues", self._queues)
        yield attempt("schedule", lambda: lag.lag(self._coming, workers=self._crew.is_there))
        yield attempt("in flight", self._in_flight)
        yield attempt("failed jobs", self._failed_jobs)

    def _on_rabbitmq(self) -> Iterator[Finding]:
        yield (reached := attempt("broker", lambda: self._reach(lambda: self._properties)))
        if reached.verdict is Verdict.FAIL:
            return
        yield attempt("version", lambda: rabbit.version(self._properties))
        yield attempt("consumer timeout", self._consumer_timeout)
        native = rabbitmq.Delays(self._app).are_native
        yield attempt("longest delay", lambda: rabbit.longest_delay(native=native()))
        yield from self._of_workers()
        if self._asked:
            yield attempt("queues", self._queues)
        if self._app.settings.redis_url is not None:
            yield attempt("failed jobs", self._failed_jobs)

    def _of_workers(self) -> Iterator[Finding]:
        yield attempt("workers", lambda: workers.answering(self._crew, self._timeout))
        if not self._asked:
            return
        yield attempt("apps", self._apps)
        yield attempt("versions", self._versions)

    def _of_store(self) -> Iterator[Finding]:
        """Look at the Redis of `meta.cache` and `meta.storage`, where that is another one."""
        try:
            store = self._store()
        except PostHogJobsError:
            return  # the configuration is wrong, which the check of the apps says
        if store is None:
            return

        def look(check: Callable[[Any, Mapping[str, Any]], Finding]) -> Finding:
            client: Any = store.connected()[0]
            return check(client, client.info())

        checks: dict[str, Callable[[Any, Mapping[str, Any]], Finding]] = {
            "version": lambda _, info: guards.version(info),
            "persistence": lambda client, info: guards.persistence(client, info, _STORED),
            "eviction": lambda _, info: guards.eviction(info, _STORED),
            "memory": lambda _, info: server.memory(info, server.JobSize()),
        }
        for name, check in checks.items():
            found = attempt(name, partial(look, check))
            yield replace(found, check=f"store {found.check}")

    def _reach(self, answer: Callable[[], object]) -> Finding:
        start = monotonic()
        answer()
        took = 1000 * (monotonic() - start)
        # kombu leaves the password out
        return ok("broker", f"{self._app.connection_for_write().as_uri()} answers in {took:.1f} ms")

    def _memory(self) -> Finding:
        coming = self._coming.minute + self._coming.hour
        size = server.job_size(self._client, self._keys)
        return server.memory(self._client.info(), size, coming)

    def _clocks(self) -> Finding:
        skews = {"here": clocks.measure(self._client)}
        for each in self._crew.reports:
            if each.skew is not None:
                skews[each.name] = each.skew
        return clocks.clocks(skews)

    def _apps(self) -> Finding:
        installations = self._app.runtime.installations
        count = len(report.installed(installations))
        return workers.apps(self._crew, report.broken(installations), count)

    def _versions(self) -> Finding:
        return workers.versions(self._crew, report.installed(self._app.runtime.installations))

    def _queues(self) -> Finding:
        app, crew = self._app, self._crew
        names = queues.routed(app, app.runtime.installations)
        waits: Mapping[str, int] = {}
        others: set[str] = set()
        if not rabbitmq.is_configured(app.conf):
            waits = queues.waiting(self._client, self._keys)
            others = queues.declared(self._client, self._keys)
        names.update(waits)
        loads = queues.loads(app, names, waits, others)
        return queues.queues(loads, queues.consumed(app, crew, loads, timeout=self._timeout), crew)

    def _in_flight(self) -> Finding:
        return inflight.in_flight(
            self._client,
            self._keys,
            stock_timeout=self._option("stock_visibility_timeout"),
            workers=self._crew.is_there,
        )

    def _failed_jobs(self) -> Finding:
        failures = self._app.failures
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        return failed.failed_jobs(max(0, failures.count() - failures.count(before=hour_ago)))

    def _consumer_timeout(self) -> Finding:
        names = queues.routed(self._app, self._app.runtime.installations)
        configured = [self._app.amqp.queues[name] for name in sorted(names)]
        return rabbit.consumer_timeout(self._properties, configured)

    def _option(self, name: str) -> float:
        """A transport option as it is configured here, or its default."""
        options = self._app.conf.broker_transport_options
        value: float = options.get(name, getattr(DurableChannel, name))
        return value


def attempt(check: str, look: Callable[[], Finding]) -> Finding:
    """Return what a check finds, which may be that it cannot look.

    Args:
        check: its name.
        look: the check.
    """
    try:
        return look()
    except ResponseError as error:
        why = _first_line(error)
        if isinstance(error, NoPermissionError) or why.startswith("unknown command"):
            fix = "Allow the user of broker_url that command, or look at the server yourself"
            return warn(check, f"Redis does not tell: {why}", fix)
        return fail(check, f"Redis refuses what the check needs: {why}", "See to what it says")
    except PostHogJobsError as error:
        return fail(check, _first_line(error), "Mend it as that says, and look again")
    except Exception as error:  # noqa: BLE001  # whatever it is, the other checks go on
        return fail(
            check,
            f"cannot be looked at: {type(error).__name__}: {_first_line(error)}",
            "See that the broker runs, and that broker_url is right",
        )


def _first_line(error: Exception) -> str:
    return redact(str(error).partition("\n")[0].rstrip("."))
