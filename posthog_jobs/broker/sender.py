"""Brings jobs and events to the broker, through Celery."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import uuid4

from posthog_jobs.broker.envelope import (
    CAPTURE,
    EXPORT_EVENTS,
    FLUSH_EXPORT,
    IF_WAITING_HEADER,
    KEY_HEADER,
    describe,
    task_name,
)
from posthog_jobs.broker.transport.sending import NOT_TAKEN, Sending, is_away
from posthog_jobs.errors import BrokerUnavailableError
from posthog_jobs.jobs.message import ABSENT, Steered
from posthog_jobs.jobs.payload import dumps, measure

if TYPE_CHECKING:
    from posthog_jobs.broker.broker import Broker
    from posthog_jobs.broker.transport.sending import Outcome
    from posthog_jobs.jobs.message import JobMessage
    from posthog_jobs.settings import Settings


class CeleryApp(Protocol):
    """What is needed of the Celery app that sends."""

    amqp: Any
    conf: Any
    control: Any
    tasks: Any

    @property
    def broker(self) -> Broker:
        """The broker."""

    @property
    def settings(self) -> Settings:
        """What is configured."""

    def connection_for_write(self) -> Any:
        """Return a connection to send over."""


class JobSender:
    """Brings jobs and events to the broker, through Celery.

    Args:
        app: the Celery app.
    """

    def __init__(self, app: CeleryApp) -> None:
        self._app: Final = app
        self._options: dict[str, Any] | None = None  # known once something has been sent

    @cached_property
    def _settings(self) -> Settings:
        return self._app.settings

    @cached_property
    def _broker(self) -> Broker:
        return self._app.broker

    def now(self) -> datetime:
        """Return the present, in UTC."""
        return datetime.now(UTC)

    def measure(self, payload: object) -> int:
        """Return the size of a payload as JSON, in bytes.

        Raises:
            PayloadTooLargeError: it is over `posthog_jobs_max_payload_bytes`.
        """
        return measure(payload, self._settings.max_payload_bytes)

    def due(self, moment: datetime, now: datetime) -> datetime:
        """Return when the broker lets go of a job that waits for a moment, never before it.

        Raises:
            DelayTooLongError: the broker is RabbitMQ, and the delay over 2^28 - 1 seconds.
        """
        delays = self._broker.delays
        return moment if delays is None else delays.due(moment, now)

    def send(self, message: JobMessage) -> tuple[str, datetime]:
        """Enqueue a job.

        Returns:
            The id of what waits or runs now, and when it is due: those of the job that waited
            under the key, if that was kept.

        Raises:
            BrokerUnavailableError: the broker did not take it.
            UnsupportedByBrokerError: the job has a key, and the broker is not Redis.
        """
        headers = {}
        if message.key is not None:
            self._broker.schedule.check()  # only Redis knows keys
            headers = {KEY_HEADER: message.key, IF_WAITING_HEADER: message.if_waiting}
        absent = message.payload is ABSENT
        args = (message.app_id,) if absent else (message.app_id, message.payload)
        outcome = self._publish(
            task_name(message.app_name, message.job_name),
            args,
            describe(message.app_id, None if absent else message.payload_bytes),
            message.id,
            eta=message.due if message.waits else None,
            headers=headers,
        )
        if message.key is None or outcome is None or outcome.id == message.id:
            return message.id, message.due
        kept = self._broker.schedule.get(outcome.id)
        return outcome.id, message.due if kept is None else kept.due

    def cancel(self, task_id: str) -> Steered:
        """Take a job out of the schedule, or revoke it in all workers."""
        steered = self._broker.schedule.cancel(task_id)
        if steered is Steered.UNKNOWN:  # it was due at once, and so never in the schedule
            self._app.control.revoke(task_id)
        return steered

    def reschedule(self, task_id: str, at: datetime) -> Steered:
        """Move a job that waits."""
        return self._broker.schedule.reschedule(task_id, at)

    def capture(self, event: dict[str, Any], task_id: str, size: int) -> None:
        """Enqueue an event for the hooks.

        Raises:
            BrokerUnavailableError: the broker did not take it.
        """
        self._publish(CAPTURE, (event,), f"(<{size} bytes>)", task_id)

    def flush_export(self, app_id: str, delay: float) -> None:
        """Have a worker flush an installation's buffer, and not at the time that was set before.

        Raises:
            BrokerUnavailableError: the broker did not take it.
        """
        argsrepr = describe(app_id, None)
        self._publish(FLUSH_EXPORT, (app_id,), argsrepr, str(uuid4()), countdown=delay)

    def export_events(
        self,
        app_id: str,
        events: list[dict[str, Any]],
        task_id: str,
        *,
        delay: float = 0,
        retries: int = 0,
    ) -> None:
        """Have a worker export a batch, which has been tried so many times.

        Raises:
            BrokerUnavailableError: the broker did not take it.
        """
        argsrepr = describe(app_id, len(dumps(events)))
        options = {"countdown": delay, "retries": retries}
        self._publish(EXPORT_EVENTS, (app_id, events), argsrepr, task_id, **options)

    def _publish(
        self, name: str, args: tuple[Any, ...], argsrepr: str, task_id: str, **options: Any
    ) -> Outcome | None:
        timeout = self._settings.enqueue_timeout
        message = Sending(task_id, timeout)
        try:
            with message:
                self._app.tasks[name].apply_async(
                    args, argsrepr=argsrepr, sending=message, **(self._options or {}), **options
                )
            if self._options is None:
                self._options = self._short_cut()
        except NOT_TAKEN as error:
            with self._app.connection_for_write() as connection:
                url = connection.as_uri()  # with its password masked
                redis = connection.transport.driver_type == "redis"
            outcome = "; nothing was enqueued"
            if message.unanswered or not redis:
                outcome = f"; whether it has {task_id} is not known, since its answer was lost"
            did, fix = f"did not take {name} within {timeout:g} s", "see that it runs"
            if not is_away(error):
                did, fix = f"refuses {name}", "see to what it says"
            why = str(error).rstrip(".")
            raise BrokerUnavailableError(
                f"the broker {url} {did}: {why}{outcome}; {fix}, and that broker_url is right",
                uncertain=message.unanswered or not redis,
            ) from error
        return message.outcome

    def _short_cut(self) -> dict[str, Any]:
        """Return what spares Celery a tenth of each publish, now that one has been made.

        Where all jobs go straight to its default queue on Redis, that need not be looked up, and
        what the first one declared is there.
        """
        conf = self._app.conf
        if (
            conf.task_routes
            or conf.task_queues
            or conf.task_annotations
            or conf.task_default_exchange_type != "direct"
        ):
            return {}
        with self._app.connection_for_write() as connection:
            if connection.transport.driver_type != "redis":
                return {}
        return {"queue": self._app.amqp.default_queue, "declare": ()}
