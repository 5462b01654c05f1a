"""The tasks of hooks: of events, of exports, and of what runs every minute, hour and day."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kombu.utils.json import dumps

from posthog_jobs.broker import envelope
from posthog_jobs.broker.transport.sending import Sending, publishing
from posthog_jobs.errors import AppBusyError, AppSetupError, RetryError
from posthog_jobs.hooks.events import is_snapshot
from posthog_jobs.hooks.ticks import Tick, task_of
from posthog_jobs.jobs.execution import ReadyJob
from posthog_jobs.jobs.retry import NEVER, ON_RETRY_ERROR, delay_after
from posthog_jobs.worker.tasks import DurableTask

if TYPE_CHECKING:
    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.hooks.ticks import Ticks

logger = logging.getLogger(__name__)


class CaptureTask(DurableTask):
    """Runs an event through `process_event`, then `on_event`, of its team's apps, and buffers it.

    A snapshot goes to `on_snapshot` alone, as in PostHog.
    """

    name = envelope.CAPTURE

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an event."""
        return not kwargs and len(args) == 1 and isinstance(args[0], dict)

    def ready(self, event: dict[str, Any]) -> ReadyJob:
        """Return what runs the hooks; an `on_event` that raised `RetryError` again, and alone."""
        return ReadyJob(NEVER, partial(self._pass, event))

    def _pass(self, event: dict[str, Any]) -> None:
        runtime = self.app.runtime
        for processed in [event] if is_snapshot(event) else runtime.process_events([event]):
            runtime.on_event(processed, partial(self._later, processed))
            runtime.export(processed)

    def _later(self, event: dict[str, Any], installation: Installation, reason: Exception) -> None:
        delay = delay_after(reason, ON_RETRY_ERROR, 0)
        logger.warning(
            "on_event of app id %r runs again in %g s: %s", installation.id, delay, reason
        )
        send = partial(
            self.app.tasks[envelope.ON_EVENT].apply_async,
            (installation.id, event),
            countdown=delay,
            retries=1,
            headers={envelope.ERROR_HEADER: envelope.described(reason)},
        )
        self.send_or_requeue(send)


class _HookTask(DurableTask):
    """Runs a hook of one installation; the arguments are its id and what the hook gets, if any."""

    abstract = True

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule and failed jobs are listed."""
        return {envelope.APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id, and the size of the rest."""
        return envelope.describe(args[0], len(dumps(args[1])) if args[1:] else None)


class OnEventTask(_HookTask):
    """Runs one app's `on_event`, or `on_snapshot`, again."""

    name = envelope.ON_EVENT

    def ready(self, app_id: str, event: dict[str, Any]) -> ReadyJob:
        """Return what runs the hook."""
        ready: ReadyJob = self.app.runtime.on_event_again(app_id, event)
        return ready

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id and an event of a team."""
        match args:
            case [str(), {"team_id": int() as team_id}]:
                return not kwargs and not isinstance(team_id, bool)
        return False


class FlushExportTask(_HookTask):
    """Sends what an installation's buffer holds, in batches. At most one of them waits."""

    name = envelope.FLUSH_EXPORT

    def ready(self, app_id: str) -> ReadyJob:
        """Return what empties the buffer."""
        return ReadyJob(NEVER, partial(self.app.runtime.flush_export, app_id, str(self.request.id)))

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id."""
        return not kwargs and len(args) == 1 and isinstance(args[0], str)

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, and the key under which one waits; RabbitMQ knows no keys."""
        key = {envelope.KEY_HEADER: "flush", envelope.IF_WAITING_HEADER: "replace"}
        return {envelope.APP_HEADER: args[0], **key}


class ExportEventsTask(_HookTask):
    """Brings a batch of events to an installation's `export_events`."""

    name = envelope.EXPORT_EVENTS

    def ready(self, app_id: str, events: list[dict[str, Any]]) -> ReadyJob:
        """Return what runs the hook."""
        ready: ReadyJob = self.app.runtime.batch(app_id, events)
        return ready

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id and a list of events."""
        match args:
            case [str(), list() as events]:
                return not kwargs and all(isinstance(event, dict) for event in events)
        return False


class TickTask(_HookTask):
    """Runs one hook of one installation for one minute, hour or day."""

    abstract = True
    hook: ClassVar[str]

    def ready(self, app_id: str, boundary: int) -> ReadyJob:
        """Return what schedules the next tick, and runs the hook.

        Args:
            app_id: the installation.
            boundary: the start of the minute, hour or day, in seconds since the epoch.
        """
        tick = Tick(app_id=app_id, hook=self.hook, boundary=datetime.fromtimestamp(boundary, UTC))
        return ReadyJob(NEVER, partial(self._run_tick, tick))

    def _run_tick(self, tick: Tick) -> None:
        ticks: Ticks = self.app.ticks
        headers, retries = self.request.headers or {}, self.request.retries
        try:
            ticks.run(tick, headers.get(envelope.DUE_HEADER))
        except (AppBusyError, AppSetupError, RetryError) as error:
            is_busy = isinstance(error, AppBusyError)
            waited = int(headers.get(envelope.WAITED_HEADER, 0)) if is_busy else retries
            policy = ticks.policy(tick, error, waited)
            if policy is None:
                return
            if is_busy:
                waits = {envelope.WAITED_HEADER: waited + 1}
                self.again(error, policy, waited, waits, retries=retries)
            self.again(error, policy, retries, retries=retries + 1)

    def send(self, tick: Tick, key: str | None = None) -> bool:
        """Have a tick wait until it is due; with a key, unless one waits under it already.

        Returns:
            Whether it waits now, and none did before.

        Raises:
            BrokerUnavailableError: the broker did not take it.
        """
        app_id, _, boundary = tick.place
        message = Sending(tick.id, self.app.settings.enqueue_timeout)
        keyed = {envelope.KEY_HEADER: key, envelope.IF_WAITING_HEADER: "keep"}
        with publishing(), message:
            self.apply_async(
                (app_id, boundary),
                task_id=tick.id,
                eta=tick.boundary,
                headers={} if key is None else keyed,
                sending=message,
            )
        return key is None or (
            message.outcome is not None and message.outcome.status == "scheduled"
        )

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id and a boundary."""
        app_id, boundary = args if len(args) == 2 else (None, None)  # noqa: PLR2004  # a pair
        return not kwargs and isinstance(app_id, str) and type(boundary) is int

    def describe(self, args: Any) -> str:
        """Return the app id and the boundary."""
        return f"({args[0]!r}, {args[1]!r})"


class MinuteTask(TickTask):
    """Runs `run_every_minute`."""

    hook = "run_every_minute"
    name = task_of(hook)


class HourTask(TickTask):
    """Runs `run_every_hour`."""

    hook = "run_every_hour"
    name = task_of(hook)


class DayTask(TickTask):
    """Runs `run_every_day`."""

    hook = "run_every_day"
    name = task_of(hook)


HOOK_TASKS: Final = (
    CaptureTask,
    OnEventTask,
    FlushExportTask,
    ExportEventsTask,
    MinuteTask,
    HourTask,
    DayTask,
)
