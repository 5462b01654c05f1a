"""Runs jobs and hooks by app id: what an app needs at run time, put together once per process."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import UnknownAppError, UnknownJobError
from posthog_jobs.events import check_event
from posthog_jobs.execution import call
from posthog_jobs.extensions.cache import Cache
from posthog_jobs.extensions.logger import AppLogger
from posthog_jobs.extensions.storage import Storage
from posthog_jobs.hooks import on_event, process_event
from posthog_jobs.installations import Installations
from posthog_jobs.jobs import Jobs, Origin
from posthog_jobs.lane import Lane
from posthog_jobs.lifecycle import Lifecycle
from posthog_jobs.messages import ABSENT, Outbox
from posthog_jobs.meta import Meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.installations import Installation
    from posthog_jobs.messages import Sender
    from posthog_jobs.redis import RedisServer
    from posthog_jobs.settings import Settings

logger = logging.getLogger(__name__)


class Runtime:
    """The installations of a process, and what runs their code.

    Attributes:
        settings: the settings that it was made from.
        installations: who is installed.
        outbox: publishes.
    """

    __slots__ = ("_lifecycle", "_server", "_stores", "installations", "outbox", "settings")

    def __init__(self, settings: Settings, sender: Sender, server: RedisServer) -> None:
        """Load the installed apps; one that cannot be loaded is logged and left out."""
        self.settings: Final = settings
        self.installations: Final = Installations(
            settings.apps, default_team_id=settings.default_team_id
        )
        for error in self.installations.broken.values():
            logger.error("%s", error, exc_info=error.__cause__)
        self.outbox: Final = Outbox(sender, Lane("posthog_jobs.publish"))
        self._stores: Final = Lane("posthog_jobs.store")
        self._server: Final = server
        self._lifecycle: Final = Lifecycle(self._meta)

    def meta(self, app_id: str) -> Meta:
        """Return an installation's meta, to trigger its jobs from outside of its hooks.

        Raises:
            UnknownAppError, AppLoadError, AppDisabledError: it cannot run.
        """
        return self._lifecycle.meta(self.installations.get(app_id), set_up=False)

    def job(
        self, app_name: str, job_name: str, app_id: str, payload: object = ABSENT
    ) -> Callable[[], None]:
        """Return what runs a job here and waits for its end, with its app set up.

        Args:
            app_name: the app that the job is of.
            job_name: the name that it is exported under.
            app_id: the installation that shall run it.
            payload: its payload, or ABSENT.

        Raises:
            AppError, UnknownJobError: the app or the job is not there now.
        """
        installation = self.installations.get(app_id)
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
        meta = self._lifecycle.meta(installation)
        if payload is not ABSENT:
            return partial(call, job.function, payload, meta)
        if job.optional_payload:
            return partial(call, job.function, meta=meta)
        return partial(call, job.function, meta)

    def is_exported(self, app_name: str, job_name: str) -> bool:
        """Tell whether an installed app of this name exports a job of this name."""
        return any(
            installation.definition.name == app_name and job_name in installation.definition.jobs
            for installation in self.installations
        )

    def process_event(self, event: object) -> dict[str, Any] | None:
        """Pass an event through the `process_event` hooks of its team, in this process.

        Returns:
            The event that came out, or None if a hook dropped it.

        Raises:
            EventError, PayloadError: it is no event; no hook has run.
        """
        checked = check_event(event, default_team_id=self.settings.default_team_id)
        installations = self.installations.of_team(checked["team_id"])
        return process_event(checked, installations, self._lifecycle.meta)

    def on_event(
        self,
        event: dict[str, Any],
        retry: Callable[[Installation, Exception], None],
        app_id: str | None = None,
    ) -> None:
        """Show a processed event to the `on_event` hooks of its team, or of one installation.

        Raises:
            UnknownAppError, AppLoadError, AppDisabledError: that installation cannot run.
        """
        installations = (
            self.installations.of_team(event["team_id"])
            if app_id is None
            else [self.installations.get(app_id)]
        )
        on_event(event, installations, self._lifecycle.meta, retry)

    def tear_down(self) -> None:
        """Run the `teardown_plugin` hooks of all that were set up in this process."""
        self._lifecycle.tear_down()

    def _meta(self, installation: Installation) -> Meta:
        return Meta(
            app_id=installation.id,
            team_id=installation.team_id,
            config=installation.config,
            global_={},
            cache=Cache(installation.id, self._server, self._stores),
            storage=Storage(installation.id, self._server, self._stores),
            jobs=Jobs(Origin(installation, self.outbox)),
            logger=AppLogger(installation),
        )
