"""Runs jobs and hooks by app id: what an app needs at run time, put together once per process."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from posthog_jobs.apps.lifecycle import Lifecycle
from posthog_jobs.apps.registry import Registry
from posthog_jobs.errors import AppError, UnknownAppError, UnknownJobError
from posthog_jobs.hooks.events import check_event, on_event, process_event, process_events
from posthog_jobs.jobs.execution import LoopCaller, ReadyJob, call, ready_job
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.retry import ON_EXPORT_RETRY, ON_RETRY_ERROR
from posthog_jobs.jobs.running import BY_HAND
from posthog_jobs.jobs.trigger import JobHandle, Outbox
from posthog_jobs.meta.meta import Metas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from posthog_jobs.apps.installation import Installation, Installations
    from posthog_jobs.apps.store import InstallationStore
    from posthog_jobs.hooks.exports import Exporter
    from posthog_jobs.jobs.message import Sender
    from posthog_jobs.jobs.running import Delivery
    from posthog_jobs.meta.meta import Meta, Stores
    from posthog_jobs.settings import Settings


class Runtime:
    """The installations of a process, and what runs their code.

    Attributes:
        settings: the settings that it was made from.
        registry: who is installed.
        metas: builds what apps are given, and reads what they have recorded.
        outbox: publishes.
    """

    __slots__ = ("_exporter", "_lifecycle", "metas", "outbox", "registry", "settings")

    def __init__(
        self,
        settings: Settings,
        sender: Sender,
        stores: Stores,
        *,
        store: InstallationStore | None = None,
        exporter: Exporter | None = None,
    ) -> None:
        """Load the apps of the configuration; one that cannot be loaded is logged and left out.

        Args:
            settings: what is configured.
            sender: publishes.
            stores: where `meta.cache`, `meta.storage` and `meta.metrics` live.
            store: where more installations live; read when the first is asked for.
            exporter: brings events to `export_events`; without it nothing is exported.
        """
        self.settings: Final = settings
        self.registry: Final = Registry(settings, store, self._retire)
        self.outbox: Final = Outbox(sender, LoopCaller("posthog_jobs.publish"))
        self.metas: Final = Metas(settings, stores, self.outbox)
        self._lifecycle: Final = Lifecycle(
            self.metas.build,
            self.registry.known.is_current,
            before_end=self._export_rest,
            after_end=self._purge_rest,
        )
        self._exporter: Final = exporter

    @property
    def installations(self) -> Installations:
        """Who is installed, as of now."""
        return self.registry.current

    def meta(self, app_id: str, *, set_up: bool = False) -> Meta:
        """Return an installation's meta, to trigger its jobs from outside of its hooks.

        Args:
            app_id: which one.
            set_up: whether its `setup_plugin` has to have run, as for its own code.

        Raises:
            UnknownAppError, AppLoadError, AppDisabledError: it cannot run.
            AppSetupError: `setup_plugin` failed.
        """
        return self._lifecycle.meta(self.registry.get(app_id), set_up=set_up)

    def job(
        self,
        app_name: str,
        job_name: str,
        app_id: str,
        payload: object = ABSENT,
        delivery: Delivery = BY_HAND,
    ) -> ReadyJob:
        """Return what runs a job here and waits for its end, with its app set up.

        Args:
            app_name: the app that the job is of.
            job_name: the name that it is exported under.
            app_id: the installation that shall run it.
            payload: its payload, or ABSENT.
            delivery: what its message says of this run.

        Returns:
            What must be run, once: until it has ended, the app is not torn down.

        Raises:
            AppError, UnknownJobError: the app or the job is not there now.
            PayloadRefusedError: its function does not take the payload any more, or needs one.
        """
        installation = self.registry.get(app_id)
        definition = installation.definition
        if definition.name != app_name:
            raise UnknownAppError(
                f"app id {app_id!r} is now an install of {definition.name!r}, not of {app_name!r}; "
                "install the app that the job is of under this id again"
            )
        job = definition.jobs.get(job_name)
        if job is None:
            raise UnknownJobError(
                f"app {app_name!r} (app id {app_id!r}) exports no job {job_name!r} any more; it "
                f"exports: {', '.join(definition.jobs) or 'none'}"
            )
        job.check_payload(payload, app_id)
        meta, release = self._lifecycle.hold(installation)
        return ready_job(job, payload, meta, delivery, release)

    def hook(self, app_id: str, name: str) -> Callable[[], None] | None:
        """Return what runs a hook that takes `meta` alone; None if the app has no such hook.

        Calling it raises AppSetupError if the app cannot be set up now.

        Raises:
            AppError: the app is not there now.
        """
        installation = self.registry.get(app_id)
        function = installation.definition.hooks.get(name)
        if function is None:
            return None

        def run() -> None:
            with self._lifecycle.holding() as meta:
                call(function, meta(installation))

        return run

    def pool_limit(self, app_id: str, job_name: str) -> float | None:
        """Return the seconds after which the pool must end a job; None if it need not."""
        try:
            job = self.registry.known.get(app_id).definition.jobs.get(job_name)
        except AppError:
            return None
        return None if job is None or job.is_async else job.time_limit

    def is_exported(self, app_name: str, job_name: str) -> bool:
        """Tell whether an installed app of this name exports a job of this name."""
        definition = self.installations.definition(app_name)
        return definition is not None and job_name in definition.jobs

    def app_name(self, app_id: str) -> str:
        """Return the name of an installation's app; empty if it is not there, or disabled."""
        try:
            return self.installations.get(app_id).definition.name
        except AppError:
            return ""

    def process_event(self, event: object) -> dict[str, Any] | None:
        """Pass an event through the `process_event` hooks of its team, in this process.

        Returns:
            The event that came out, or None if a hook dropped it.

        Raises:
            EventError, PayloadError: it is no event; no hook has run.
        """
        checked = check_event(event, default_team_id=self.settings.default_team_id)
        installations = self.installations.of_team(checked["team_id"])
        with self._lifecycle.holding() as meta:
            return process_event(checked, installations, meta)

    def process_events(self, events: Iterable[object]) -> list[dict[str, Any]]:
        """Pass events through the hooks of their teams, in this process.

        Returns:
            The events that came out, team by team.

        Raises:
            EventError, PayloadError: one is no event; no hook has run.
        """
        teams: dict[int, list[dict[str, Any]]] = {}
        for event in events:
            checked = check_event(event, default_team_id=self.settings.default_team_id)
            teams.setdefault(checked["team_id"], []).append(checked)
        with self._lifecycle.holding() as meta:
            return [
                processed
                for team_id, batch in teams.items()
                for processed in process_events(batch, self.installations.of_team(team_id), meta)
            ]

    def capture(self, event: object) -> JobHandle:
        """Hand an event to a worker, which runs `process_event` and then `on_event`.

        Returns:
            A handle, as jobs have it.

        Raises:
            EventError, PayloadError: it is not an event, or too large; nothing was enqueued.
            BrokerUnavailableError: the broker did not take it.
        """
        sender, now, task_id = self.outbox.sender, datetime.now(UTC), str(uuid4())
        checked = copy.deepcopy(check_event(event, default_team_id=self.settings.default_team_id))
        size = sender.measure(checked)

        def send() -> tuple[str, datetime]:
            sender.capture(checked, task_id, size)
            return task_id, now

        return JobHandle(task_id, now, self.outbox, send, f"capturing {checked['event']!r}")

    def on_event(
        self, event: dict[str, Any], retry: Callable[[Installation, Exception], None]
    ) -> None:
        """Show a processed event to the hooks for it of its team; `retry` has one run again."""
        with self._lifecycle.holding() as meta:
            on_event(event, self.installations.of_team(event["team_id"]), meta, retry)

    def on_event_again(self, app_id: str, event: dict[str, Any]) -> ReadyJob:
        """Return what shows an event to one installation's hook for it, with its app set up.

        Raises:
            AppError: the app is not there now.
        """
        installation = self.registry.get(app_id)
        meta, release = self._lifecycle.hold(installation)

        def run() -> None:
            reasons: list[Exception] = []
            try:
                on_event(event, [installation], lambda _: meta, lambda _, why: reasons.append(why))
            finally:
                release()
            if reasons:
                raise reasons[0]

        return ReadyJob(ON_RETRY_ERROR, run)

    def export(self, event: dict[str, Any]) -> None:
        """Put a processed event into the buffers of those of its team that export it.

        Raises:
            BrokerUnavailableError: it is not in all of them, and cannot be sent.
        """
        if self._exporter is not None:
            self._exporter.add(event, self.installations.of_team(event["team_id"]))

    def batch(self, app_id: str, events: list[dict[str, Any]]) -> ReadyJob:
        """Return what runs an installation's `export_events` on a batch, with its app set up.

        Returns:
            What must be called, once: until it has ended, the app is not torn down.

        Raises:
            AppError, UnknownJobError: the app or the hook is not there now.
        """
        installation = self.registry.get(app_id)
        hook = installation.definition.hooks.get("export_events")
        if hook is None:
            raise UnknownJobError(
                f"app {installation.definition.name!r} (app id {app_id!r}) has no hook "
                "export_events any more; add it again, or discard the batch"
            )
        # a copy, since a retry sends the batch as it came
        own = copy.deepcopy(events)
        meta, release = self._lifecycle.hold(installation)

        def run() -> None:
            try:
                call(hook, own, meta)
            finally:
                release()

        return ReadyJob(ON_EXPORT_RETRY, run)

    def flush_export(self, app_id: str, owner: str) -> None:
        """Send what is full or due in an installation's buffer, whether it is there or not.

        Args:
            app_id: the installation's id.
            owner: the id of this attempt; the same one when it is made again.

        Raises:
            StoreUnavailableError, BrokerUnavailableError: not now; nothing is lost.
        """
        try:
            installation = self.registry.get(app_id)
        except AppError:
            installation = None
        if self._exporter is not None:
            self._exporter.flush(app_id, installation, owner)

    def look_for_exports(self) -> None:
        """Send the flush of each buffer whose own was lost.

        Raises:
            StoreUnavailableError, BrokerUnavailableError, ConfigurationError: not now.
        """
        if self._exporter is not None:
            self._exporter.look(self.installations)

    def drop_exports(self, app_id: str) -> None:
        """Delete what an installation has buffered for its `export_events`.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        if self._exporter is not None:
            self._exporter.drop(app_id)

    def tear_down(self) -> None:
        """Export what this process has buffered; run `teardown_plugin` of all it has set up."""
        if self._exporter is not None:
            self._exporter.drain_all(lambda *batch: self.batch(*batch).run)
        self._lifecycle.tear_down()

    def _retire(self, installation: Installation) -> None:
        self._lifecycle.retire(installation)

    def _export_rest(self, installation: Installation, meta: Meta) -> None:
        """Export what an installation has buffered with its old version, which is about to end."""
        hook = installation.definition.hooks.get("export_events")
        if hook is not None and self._exporter is not None:
            self._exporter.drain(
                installation, lambda _, events: partial(call, hook, copy.deepcopy(events), meta)
            )

    def _purge_rest(self, installation: Installation) -> None:
        """Delete what an installation has written after it was uninstalled with all it kept."""
        known = self.registry.known
        if known.is_purged(installation.id):
            self.registry.refresh(ask=True)  # by now the id may be installed again
        if known.is_purged(installation.id):
            self.metas.purge(installation.id)
