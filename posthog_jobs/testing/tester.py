"""An app under test: its hooks and jobs, run in the test's own process."""

from __future__ import annotations

import copy
import sys
from contextlib import contextmanager
from functools import partial
from itertools import count
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from posthog_jobs.errors import AppError, AppSetupError, EventError, PostHogJobsError, RetryError
from posthog_jobs.hooks.events import check_event, processed
from posthog_jobs.jobs.due import due_in
from posthog_jobs.jobs.execution import ReadyJob, call, in_event_loop
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.retry import ON_EXPORT_RETRY, ON_RETRY_ERROR, delay_after
from posthog_jobs.jobs.running import Delivery
from posthog_jobs.settings import Settings
from posthog_jobs.testing.memory import memory_stores
from posthog_jobs.testing.recorder import JobsRecorder
from posthog_jobs.testing.schedule import Clock, MemorySchedule, as_worker
from posthog_jobs.worker.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.errors import Number
    from posthog_jobs.hooks.events import PluginEvent
    from posthog_jobs.jobs.function import Function
    from posthog_jobs.meta.meta import Meta
    from posthog_jobs.testing.schedule import ScheduledJob

#: A module, the name or the path of one, or a mapping of what one would export.
App: TypeAlias = "ModuleType | str | PathLike[str] | Mapping[str, Any]"

_numbers: Final = count(1)

#: Hook → how it is run again after `RetryError`, as in a worker.
_POLICIES: Final = {
    "on_event": ON_RETRY_ERROR,
    "on_snapshot": ON_RETRY_ERROR,
    "export_events": ON_EXPORT_RETRY,
}


class AppTester:
    """One installation of an app, with what it needs in memory.

    A hook or job that raises, raises in the test. `setup_plugin` runs before the first of them.
    Everything is synchronous, and async functions are waited for; in an `async def` test write
    `await asyncio.to_thread(app.process_event, event)`.

    Attributes:
        clock: what `run_in` and times to live go by; `run_due` turns it.
        jobs: what was triggered, and what failed.
    """

    __slots__ = ("_app_id", "_runtime", "_schedule", "_settings", "_stores", "clock", "jobs")

    def __init__(
        self,
        app: App,
        *,
        config: Mapping[str, Any] | None = None,
        app_id: str = "app",
        team_id: int = 1,
        now: datetime | None = None,
    ) -> None:
        """Install an app.

        Args:
            app: its module, the name of one (`myapps.teapot`), the path of a file or folder, as
                `posthog_jobs_apps` has it, or a mapping of what a module would export:
                `{"jobs": {"retry": retry}, "process_event": process_event}`.
            config: `meta.config`.
            app_id: the installation's id.
            team_id: whose events it sees.
            now: what the clock shows, an aware datetime; None for the present.

        Raises:
            AppLoadError: it is not an app; the message says why, and what to do.
            ConfigurationError: the app id or the team cannot be one.
        """
        self._app_id: Final = app_id
        self.clock: Final = Clock(now)
        with _loadable(app) as source:
            entry = {"module": source, "config": dict(config or {}), "team_id": team_id}
            self._settings: Final = Settings(apps={app_id: entry})
            self._schedule: Final = MemorySchedule(self.clock, self._settings.max_payload_bytes)
            self._stores: Final = memory_stores(self._schedule.now)
            self._runtime = self._started()
        self._runtime.installations.get(app_id)
        self.jobs: Final = JobsRecorder(self._schedule)

    @property
    def meta(self) -> Meta:
        """The installation's `meta`, to prepare or look at what the app keeps, or call its jobs."""
        return self._runtime.meta(self._app_id)

    @property
    def captured(self) -> list[PluginEvent]:
        """The events that the app gave to `meta.posthog.capture`, oldest first."""
        return self._schedule.captured

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """The values of the metrics that the app declares."""
        return self._runtime.metas.metrics(self._app_id, self._installation.definition)

    def setup(self) -> Meta:
        """Run `setup_plugin`, unless it has run.

        Returns:
            `meta`.

        Raises:
            Exception: what it raised. It is run again when it is next needed.
        """
        if in_event_loop():  # in which no hook can be waited for
            raise PostHogJobsError(
                "an app under test is run from sync code; in an async test write, for one, "
                "`await asyncio.to_thread(app.process_event, event)`"
            )
        try:
            with as_worker():
                return self._runtime.meta(self._app_id, set_up=True)
        except AppSetupError as error:
            reason = error.__cause__ or error
        self._runtime = self._started()  # or it would be left alone until its next retry is due
        raise reason

    def teardown(self) -> None:
        """Run `teardown_plugin`, if the app was set up; what follows is as in another process.

        `global_` is empty then; cache, storage and what waits stay.
        """
        meta, hooks = self.setup(), self._installation.definition.hooks
        self._runtime = self._started()
        if "teardown_plugin" in hooks:
            self._call(hooks["teardown_plugin"], meta)

    def process_event(self, event: Mapping[str, object]) -> PluginEvent | None:
        """Pass an event to `process_event`.

        Returns:
            The event that came out, checked, or None if the hook dropped it.

        Raises:
            EventError, PayloadError: it is not an event of the app's team, or what came out is
                not an event.
            Exception: what the hook raised.
        """
        results = self._processed("process_event", [event])
        return results[0] if results else None

    def process_event_batch(self, events: Sequence[Mapping[str, object]]) -> list[PluginEvent]:
        """Pass events, one or more, to `process_event_batch`; return what came out, checked."""
        return self._processed("process_event_batch", events)

    def on_event(self, event: Mapping[str, object]) -> None:
        """Show an event to `on_event`; after `RetryError` it waits in `jobs.scheduled`.

        As in a worker, where it is run again after 5, 10, 20, 40 and 80 s: `run_due` does that.

        Raises:
            EventError, PayloadError: it is not an event of the app's team.
            Exception: what the hook raised.
        """
        self._run_with_retries("on_event", self._event(event))

    def on_snapshot(self, event: Mapping[str, object]) -> None:
        """Show a session recording's event to `on_snapshot`, as `on_event` does."""
        self._run_with_retries("on_snapshot", self._event(event))

    def export_events(self, events: Sequence[Mapping[str, object]]) -> None:
        """Pass a batch to `export_events`; after `RetryError` it waits in `jobs.scheduled`.

        As in a worker, where it is run again after 6, 12, 24 … s: `run_due` does that.

        Raises:
            EventError, PayloadError: one is not an event of the app's team.
            Exception: what the hook raised.
        """
        self._run_with_retries("export_events", [self._event(each) for each in events])

    def run_every_minute(self) -> None:
        """Run `run_every_minute` once, now."""
        self._run_hook("run_every_minute")

    def run_every_hour(self) -> None:
        """Run `run_every_hour` once, now."""
        self._run_hook("run_every_hour")

    def run_every_day(self) -> None:
        """Run `run_every_day` once, now."""
        self._run_hook("run_every_day")

    def run_due(
        self, *, after: tuple[Number, str] | None = None, raises: bool = True
    ) -> list[ScheduledJob]:
        """Turn the clock, and run all jobs that come due meanwhile, one after another.

        The clock stands at each job's due time while that runs. What they trigger runs too, if it
        is due by the end. A job that raises `RetryError` waits again, as in production, and so do
        `on_event`, `on_snapshot` and a batch of `export_events`.

        Args:
            after: how far to turn, as `run_in` takes it; None: run what is due now.
            raises: whether a job that fails for good raises here, with the clock left where it
                is; else the next one runs. Either way it is in `jobs.failed`.

        Returns:
            The jobs that ran, in order; one that was retried is there for each attempt.

        Raises:
            Exception: what a job raised.
            RetriesExhaustedError: it raised `RetryError` at each attempt.
            PostHogJobsError: jobs trigger each other at one instant without an end.
            DurationError: `after` is not a duration.
        """
        self.setup()
        end = self.clock.now if after is None else due_in(*after, now=self.clock.now)
        ran: list[ScheduledJob] = []
        for job, failure in self._schedule.run_until(end, self._prepare):
            ran.append(job)
            if failure is not None:
                self.jobs.failed.append(failure)
                if raises:
                    raise failure.error
        return ran

    @property
    def _installation(self) -> Installation:
        return self._runtime.installations.get(self._app_id)

    def _started(self) -> Runtime:
        """Return what a new process would have: nothing set up, and the same stores."""
        # without an exporter: a tester hands batches to `export_events` itself
        return Runtime(self._settings, self._schedule, self._stores)

    def _hook(self, name: str) -> Function:
        definition = self._installation.definition
        if name not in definition.hooks:
            raise AppError(
                f"app {definition.name!r} has no hook {name}; it has: "
                f"{', '.join(definition.hooks) or 'none'}"
            )
        return definition.hooks[name]

    def _processed(self, name: str, events: Sequence[Mapping[str, object]]) -> list[PluginEvent]:
        meta, hook = self.setup(), self._hook(name)
        checked = [self._event(each) for each in events]
        with as_worker():
            return cast("list[PluginEvent]", processed(name, hook, checked, meta))

    def _run_hook(self, name: str, *arguments: object) -> None:
        meta = self.setup()
        self._call(self._hook(name), *arguments, meta)

    def _run_with_retries(self, name: str, payload: Any) -> None:
        self.setup()  # whose own RetryError is the test's
        try:
            self._run_hook(name, copy.deepcopy(payload))
        except RetryError as error:
            delay = delay_after(error, _POLICIES[name], 0)
            self._schedule.wait_for_hook(name, payload, delay or 0)

    def _call(self, function: Function, *arguments: object) -> None:
        with as_worker():
            call(function, *arguments)

    def _event(self, event: Mapping[str, object]) -> dict[str, Any]:
        team_id = self._installation.team_id
        checked = copy.deepcopy(check_event(event, default_team_id=team_id))
        if checked["team_id"] != team_id:
            raise EventError(
                f"the event is of team {checked['team_id']}, and the app of team {team_id}, so "
                "that it does not see it; give both the same team_id"
            )
        return checked

    def _prepare(self, job: ScheduledJob) -> ReadyJob:
        payload = job.payload if job.payload is ABSENT else copy.deepcopy(job.payload)
        if job.is_hook:
            hook = partial(call, self._hook(job.name), payload, self.meta)
            return ReadyJob(_POLICIES[job.name], hook)
        app_name = self._installation.definition.name
        delivery = Delivery(id=job.id, attempt=job.attempt + 1, due=job.due, key=job.sent_key)
        return self._runtime.job(app_name, job.name, self._app_id, payload, delivery)


def create_meta(
    app: App | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    app_id: str = "app",
    team_id: int = 1,
) -> Meta:
    """Return a `meta` with cache and storage in memory, to call one function of an app with.

    Args:
        app: whose jobs `meta.jobs` has, as for `AppTester`; None for none.
        config: `meta.config`.
        app_id: the installation's id.
        team_id: its team.
    """
    if app is None:
        app = {"setup_plugin": lambda meta: None}  # noqa: ARG005  # a hook has this parameter
    return AppTester(app, config=config, app_id=app_id, team_id=team_id).meta


@contextmanager
def _loadable(app: App) -> Iterator[str]:
    """Give the name or path under which an app can be loaded meanwhile.

    An app is a module; a mapping, or a module that was never imported, is made one of its own.
    """
    if isinstance(app, str):
        yield app
    elif isinstance(app, PathLike):
        yield str(Path(fspath(app)).absolute())
    elif isinstance(app, ModuleType) and sys.modules.get(app.__name__) is app:
        yield app.__name__
    else:
        number = next(_numbers)
        name = f"posthog_jobs_tested_{number}.app_{number}"
        module = ModuleType(name)
        exports = vars(app) if isinstance(app, ModuleType) else app
        vars(module).update({"__file__": None, **exports})
        sys.modules[name] = module
        try:
            yield name
        finally:
            del sys.modules[name]
