"""The tasks of `run_every_minute`, `run_every_hour` and `run_every_day`.

A tick waits in the schedule, under a key, so that one runs however many workers there are; each one
sees to the next before it runs. RabbitMQ knows no keys: there a claim on Redis stands for it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from posthog_jobs.broker.envelope import (
    APP_HEADER,
    DUE_HEADER,
    IF_WAITING_HEADER,
    KEY_HEADER,
    WAITED_HEADER,
)
from posthog_jobs.broker.redis import unavailable
from posthog_jobs.broker.transport.sending import Sending, publishing
from posthog_jobs.errors import (
    AppBusyError,
    AppDisabledError,
    AppError,
    AppLoadError,
    AppRemovedError,
    AppSetupError,
    RetryError,
    UnsupportedByBrokerError,
)
from posthog_jobs.hooks.ticks import TASKS, Tick, boundary_after, boundary_before
from posthog_jobs.jobs.retry import NEVER, ON_TICK_RETRY, UNTIL_FREE, delay_after
from posthog_jobs.worker.durable_task import DurableTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.celery import PostHogJobs
    from posthog_jobs.hooks.tick_ledger import TickLedger

logger = logging.getLogger(__name__)

#: The key that a tick waits under.
KEY: Final = "tick"


class TickTask(DurableTask):
    """Runs one hook of one installation for one minute, hour or day."""

    abstract = True
    hook: ClassVar[str]

    def run(self, app_id: str, boundary: int) -> None:
        """Schedule the next tick, and run the hook, unless it has run for this boundary.

        Args:
            app_id: the installation.
            boundary: the start of the minute, hour or day, in seconds since the epoch.
        """
        with self.running():
            tick = Tick(
                app_id=app_id, hook=self.hook, boundary=datetime.fromtimestamp(boundary, UTC)
            )
            ledger = self.app.tick_ledger
            # by RabbitMQ's clock the tick may be early: the next one is not it
            now = ledger.now() if self._is_extra(tick) else max(ledger.now(), tick.boundary)
            try:
                run = self.app.runtime.hook(app_id, self.hook)
            except AppLoadError as error:
                logger.warning("%s of app id %r does not run: %s", self.hook, app_id, error)
                self.send_next(app_id, now)
                return
            except AppError as error:
                logger.info("%s of app id %r ends: %s", self.hook, app_id, error)
                if isinstance(error, AppDisabledError | AppRemovedError):
                    ledger.forget(app_id)  # what it does not run meanwhile is not made up
                return
            if run is not None:
                self.send_next(app_id, now)
                self._run(tick, run, ledger, now)

    def send_next(self, app_id: str, now: datetime) -> bool:
        """Have an installation's next tick wait; return whether none did."""
        boundary = boundary_after(self.hook, now)
        tick = Tick(app_id=app_id, hook=self.hook, boundary=boundary)
        if not self.app.broker.knows_keys:
            return self._send_claimed(tick, now)
        message = Sending(tick.id, self.app.settings.enqueue_timeout)
        headers = {KEY_HEADER: KEY, IF_WAITING_HEADER: "keep"}
        with message:
            self.send(tick, eta=boundary, headers=headers, sending=message)
        return message.outcome is not None and message.outcome.status == "scheduled"

    def send(self, tick: Tick, **options: Any) -> None:
        """Send a tick."""
        args = (tick.app_id, int(tick.boundary.timestamp()))
        with publishing():
            self.apply_async(args, task_id=tick.id, **options)

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id and a boundary."""
        app_id, boundary = args if len(args) == 2 else (None, None)  # noqa: PLR2004  # a pair
        return not kwargs and isinstance(app_id, str) and type(boundary) is int

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule is listed."""
        return {APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id and the boundary."""
        return f"({args[0]!r}, {args[1]!r})"

    def _send_claimed(self, tick: Tick, now: datetime) -> bool:
        ledger = self.app.tick_ledger
        if not ledger.claim(tick, now):
            return False
        try:
            self.send(tick, eta=tick.boundary)
        except BaseException:
            ledger.disclaim(tick)
            raise
        return True

    def _is_extra(self, tick: Tick) -> bool:
        """Tell whether an operator moved it to before its time, or sent it again: one run more."""
        due = (self.request.headers or {}).get(DUE_HEADER)
        is_early = due is None or due < tick.boundary.timestamp() * 1000
        return is_early and bool(self.app.broker.knows_keys)

    def _run(self, tick: Tick, run: Callable[[], None], ledger: TickLedger, now: datetime) -> None:
        request = self.request
        headers = request.headers or {}
        is_extra = self._is_extra(tick)
        try:
            with ledger.lock(tick):
                if not is_extra and ledger.has_ended(tick):
                    logger.info("%s[%s] has run already", self.name, request.id)
                    return
                run()
                if not is_extra:  # a late one makes up for all that were due when it began
                    ledger.end(replace(tick, boundary=boundary_before(self.hook, now)))
        except AppBusyError as error:
            waited = int(headers.get(WAITED_HEADER, 0))
            if _is_before_next(tick, UNTIL_FREE.delay(waited), ledger):
                retries = request.retries
                self.again(error, UNTIL_FREE, waited, {WAITED_HEADER: waited + 1}, retries=retries)
            _leave_out(tick, error)
        except (RetryError, AppSetupError) as error:
            retries = request.retries
            is_final = isinstance(error, AppSetupError) and error.final
            policy = NEVER if is_final or not tick.is_made_up else ON_TICK_RETRY
            delay = delay_after(error, policy, retries)
            if _is_before_next(tick, delay, ledger):
                self.again(error, policy, retries, retries=retries + 1)
            if isinstance(error, RetryError) and delay is None:
                self.again(error, NEVER, retries)
            _leave_out(tick, error)  # to the next one, if that is due before the retry would be


def _is_before_next(tick: Tick, delay: float | None, ledger: TickLedger) -> bool:
    if delay is None:
        return False
    now = ledger.now()
    return now + timedelta(seconds=delay) < boundary_after(tick.hook, now)


def _leave_out(tick: Tick, error: Exception) -> None:
    logger.warning("%s of app id %r is left out: %s", tick.hook, tick.app_id, error)


class MinuteTask(TickTask):
    """Runs `run_every_minute`."""

    hook = "run_every_minute"
    name = "posthog_jobs.run_every_minute"


class HourTask(TickTask):
    """Runs `run_every_hour`."""

    hook = "run_every_hour"
    name = "posthog_jobs.run_every_hour"


class DayTask(TickTask):
    """Runs `run_every_day`."""

    hook = "run_every_day"
    name = "posthog_jobs.run_every_day"


TICK_TASKS: Final = (MinuteTask, HourTask, DayTask)


def schedule_ticks(app: PostHogJobs) -> None:
    """See to it that the next tick of each installed hook waits; one call of Redis if all do.

    An hour or a day that was missed, as when the worker that had its tick did not know the app, is
    made up at once.

    Raises:
        UnsupportedByBrokerError: an installed app has such a hook, and there is no Redis.
        BrokerUnavailableError: it does not answer.
    """
    tasks = [app.tasks[task.name] for task in TICK_TASKS]
    wanted = [
        (installation.id, task)
        for installation in app.runtime.installations
        for task in tasks
        if task.hook in installation.definition.hooks
    ]
    if not wanted:
        return
    missing = wanted
    if app.broker.knows_keys:
        waiting = app.schedule.under_key(KEY, [(app_id, task.name) for app_id, task in wanted])
        missing = [pair for pair, task_id in zip(wanted, waiting, strict=True) if task_id is None]
    ledger = app.tick_ledger
    with unavailable():
        for app_id, task in missing:
            now = ledger.now()
            last = ledger.last(app_id, task.hook)
            tick = Tick(app_id=app_id, hook=task.hook, boundary=boundary_before(task.hook, now))
            # to be sent only by the one who scheduled the next, since it has no key
            if (
                task.send_next(app_id, now)
                and tick.is_made_up
                and last is not None
                and last < tick.boundary
            ):
                logger.warning("%s of app id %r missed %s", task.hook, app_id, tick.boundary)
                task.send(tick, eta=tick.boundary)


def stop_ticks(app: PostHogJobs, app_id: str) -> None:
    """Cancel the ticks of an installation that was removed, and forget which ones ran.

    Raises:
        BrokerUnavailableError: Redis does not answer.
    """
    with unavailable():
        with suppress(UnsupportedByBrokerError):
            for name in TASKS:
                app.schedule.cancel_all(app_id=app_id, job=name)
        with suppress(UnsupportedByBrokerError):
            app.tick_ledger.forget(app_id)
