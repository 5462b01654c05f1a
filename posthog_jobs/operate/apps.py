"""`app.apps`: who is installed; installs, configures, disables and removes while workers run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.installation import InstalledApp, read_entry
from posthog_jobs.apps.loading import resolved
from posthog_jobs.errors import InstallError, UnknownAppError, UnsupportedByBrokerError
from posthog_jobs.hooks.ticks import PERIODS, task_of
from posthog_jobs.jobs.payload import check_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from posthog_jobs.apps.installation import AppEntry
    from posthog_jobs.apps.store import Edit, InstallationStore
    from posthog_jobs.broker.schedule import Schedule
    from posthog_jobs.errors import AppError
    from posthog_jobs.worker.runtime import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Uninstalled:
    """What became of an installation's remains.

    Attributes:
        cancelled: how many waiting jobs were cancelled; None if they were kept.
        purged: how many keys of its cache and storage were deleted; None if they were kept.
    """

    cancelled: int | None
    purged: int | None


class Apps:
    """Who is installed. Running workers take a change within a second, without a restart.

    What `posthog_jobs_apps` configures is listed too, and changed there alone.
    Every method raises StoreUnavailableError when Redis does not answer.
    """

    __slots__ = ("_purge", "_runtime", "_schedule", "_stop_ticks", "_store")

    def __init__(
        self,
        runtime: Runtime,
        store: InstallationStore,
        *,
        schedule: Callable[[], Schedule],
        purge: Callable[[str], int],
        stop_ticks: Callable[[str], None],
    ) -> None:
        self._runtime: Final = runtime
        self._store: Final = store
        self._schedule: Final = schedule
        self._purge: Final = purge
        self._stop_ticks: Final = stop_ticks

    def list(self) -> list[InstalledApp]:
        """Return all that is installed, in the order in which hooks run."""
        registry = self._runtime.registry
        registry.refresh(ask=True)
        return [app for app in registry.known.all.values() if not app.entry.is_removed]

    def get(self, app_id: str) -> InstalledApp:
        """Return one installation.

        Raises:
            UnknownAppError: there is none; AppRemovedError if there was.
        """
        self._runtime.registry.refresh(ask=True)
        return self._known(app_id)

    def metrics(self, app_id: str) -> dict[str, float | None]:
        """Return an installation's metrics, as all workers have recorded them.

        Returns:
            Name → value; what was never recorded is 0 for a `sum`, else None.

        Raises:
            UnknownAppError: there is none of this id; AppRemovedError if there was.
        """
        return self._runtime.metas.metrics(app_id, self.get(app_id).definition)

    def install(  # noqa: PLR0913  # an installation's fields
        self,
        module: str,
        *,
        id: str,  # noqa: A002  # the word of the command line and of Installation
        config: Mapping[str, Any] | None = None,
        team_id: int | None = None,
        enabled: bool = True,
        order: int = 0,
    ) -> InstalledApp:
        """Install an app. Its code is imported here, and all is checked before it is stored.

        Args:
            module: an importable module, or the path of a file or folder, as the workers have it.
            id: the app id, of up to 100 letters, digits, dots, dashes and underscores.
            config: what its code finds in `meta.config`.
            team_id: whose events its hooks see; `posthog_jobs_default_team_id` if None.
            enabled: whether it runs.
            order: hooks run in ascending order.

        Raises:
            ConfigurationError, PayloadError: an argument is of the wrong type.
            AppConfigError: the config is not what the app asks for.
            AppLoadError: the code cannot be loaded, or another app has its name.
            InstallError: there is an installation of this id.
        """
        said: dict[str, Any] = {"module": module, "enabled": enabled, "order": order}
        if config is not None:
            said["config"] = config
        if team_id is not None:
            said["team_id"] = team_id
        entry = self._read(id, said)

        def edit(entries: Mapping[str, AppEntry]) -> InstalledApp:
            before = entries.get(entry.id)
            if before is not None and not before.is_removed:
                raise InstallError(
                    f"app id {entry.id!r} is installed already, from {before.module!r}; use "
                    "another id, or change that one: celery -A posthog_jobs apps configure "
                    f"{entry.id}"
                )
            return self._preview(entry, {}, entries)  # no old config: a mask stands for nothing

        return self._save(entry.id, edit)

    def configure(
        self,
        app_id: str,
        changes: Mapping[str, Any] | None = None,
        *,
        module: str | None = None,
        team_id: int | None = None,
        order: int | None = None,
    ) -> InstalledApp:
        """Change an installation; the next job of it has the new config.

        Args:
            app_id: which one.
            changes: field of the config → its new value. None removes the field; a masked value
                keeps its old one.
            module: other code for it.
            team_id: another team.
            order: another place in the order of hooks.

        Raises:
            As `install`; UnknownAppError: there is no such installation.
        """
        given = {"module": module, "team_id": team_id, "order": order, "config": changes}
        said = {name: value for name, value in given.items() if value is not None}

        def edit(entries: Mapping[str, AppEntry]) -> InstalledApp:
            before = self._there(app_id, entries)
            read = self._read(app_id, {"module": before.module, **said})
            after = replace(
                before,
                module=read.module,
                config=read.config,
                team_id=before.team_id if team_id is None else team_id,
                order=before.order if order is None else order,
            )
            return self._preview(after, before.config, entries)

        return self._save(app_id, edit)

    def enable(self, app_id: str) -> InstalledApp:
        """Let an installation run again.

        Raises:
            UnknownAppError: there is no such installation.
            InstallError: it is one of the configuration.
        """
        return self._switch(app_id, enabled=True)

    def disable(self, app_id: str) -> InstalledApp:
        """Let an installation run neither hooks nor jobs; what waits of it stays until it is due.

        Raises:
            UnknownAppError: there is no such installation.
            InstallError: it is one of the configuration.
        """
        return self._switch(app_id, enabled=False)

    def uninstall(
        self, app_id: str, *, cancel_jobs: bool | None = None, purge: bool = False
    ) -> Uninstalled:
        """Remove an installation; workers that had set it up run its `teardown_plugin`.

        Args:
            app_id: which one. One that was uninstalled before can be cleared of what it left.
            cancel_jobs: whether to cancel its waiting jobs, and forget the events that wait for
                its `export_events`. False: they are kept as failed when they come due. None:
                there must be none.
            purge: whether to delete its cache and storage. What a job that still runs, or
                `teardown_plugin`, keeps there afterwards is deleted by its process, after that.

        Returns:
            What became of its remains.

        Raises:
            UnknownAppError: there was never such an installation.
            InstallError: it is one of the configuration, or has waiting jobs and `cancel_jobs`
                is None.
            UnsupportedByBrokerError: RabbitMQ cannot cancel them; nothing was changed.
        """
        self._refuse_configured(app_id)
        schedule = self._schedule() if cancel_jobs else None
        if cancel_jobs is None and (waiting := self.waiting_jobs(app_id)):
            raise InstallError(
                f"app id {app_id!r} has {waiting:,} waiting jobs; say what becomes of them: "
                "cancel_jobs=True (--cancel-jobs), or False (--keep-jobs)"
            )

        def edit(entries: Mapping[str, AppEntry]) -> InstalledApp:
            before = entries.get(app_id)
            if before is None:
                raise self._unknown(app_id)
            purged = purge or before.is_purged
            return InstalledApp(entry=replace(before, config={}, is_removed=True, is_purged=purged))

        self._store.change(app_id, edit)
        self._runtime.registry.refresh(ask=True)
        self._stop_ticks(app_id)
        cancelled = None
        if schedule is not None:
            cancelled = schedule.cancel_all(app_id=app_id)
            self._runtime.drop_exports(app_id)
        return Uninstalled(
            cancelled=cancelled,
            purged=self._purge(app_id) if purge else None,
        )

    def waiting_jobs(self, app_id: str) -> int:
        """Return how many jobs of an installation wait; 0 on RabbitMQ, which cannot tell.

        The next runs of `run_every_minute` and its like are none of them.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        try:
            schedule = self._schedule()
            ticks = sum(schedule.count(app_id=app_id, job=task_of(hook)) for hook in PERIODS)
            return schedule.count(app_id=app_id) - ticks
        except UnsupportedByBrokerError:
            return 0

    def _switch(self, app_id: str, *, enabled: bool) -> InstalledApp:
        def edit(entries: Mapping[str, AppEntry]) -> InstalledApp:
            return InstalledApp(entry=replace(self._there(app_id, entries), enabled=enabled))

        return self._save(app_id, edit)

    def _save(self, app_id: str, edit: Edit) -> InstalledApp:
        self._refuse_configured(app_id)
        self._runtime.registry.refresh(ask=True, checked=self._store.change(app_id, edit))
        return self._known(app_id)

    def _preview(
        self, entry: AppEntry, old: Mapping[str, Any], entries: Mapping[str, AppEntry]
    ) -> InstalledApp:
        return self._runtime.registry.known.preview(entry, old, entries.values())

    def _there(self, app_id: str, entries: Mapping[str, AppEntry]) -> AppEntry:
        entry = entries.get(app_id)
        if entry is None or entry.is_removed:
            raise self._unknown(app_id)
        return entry

    def _read(self, app_id: str, said: dict[str, Any]) -> AppEntry:
        default = self._runtime.settings.default_team_id
        entry = read_entry(app_id, said, default_team_id=default, where="the app to install")
        check_payload(entry.config, "config")
        return replace(entry, module=resolved(entry.module))

    def _refuse_configured(self, app_id: str) -> None:
        if self._runtime.registry.known.is_configured(app_id):
            raise InstallError(
                f"app id {app_id!r} is installed by posthog_jobs_apps; change it in celeryconfig.py"
            )

    def _known(self, app_id: str) -> InstalledApp:
        app = self._runtime.registry.known.all.get(app_id)
        if app is None or app.entry.is_removed:
            raise self._unknown(app_id)
        return app

    def _unknown(self, app_id: str) -> AppError:
        self._runtime.registry.refresh(ask=True)
        try:
            self._runtime.registry.known.get(app_id)
        except UnknownAppError as error:
            return error
        return InstallError(f"app id {app_id!r} was changed by somebody else just now; try again")
