"""An app's install: an id, the app's code, a config and a team."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.entries import read_entry
from posthog_jobs.apps.export_options import ExportOptions
from posthog_jobs.apps.loading import load_app
from posthog_jobs.errors import (
    AppConfigError,
    AppDisabledError,
    AppError,
    AppLoadError,
    AppRemovedError,
    UnknownAppError,
    did_you_mean,
)
from posthog_jobs.jobs.retry import LOAD_AGAIN
from posthog_jobs.redaction import keep_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from posthog_jobs.apps.definition import AppDefinition
    from posthog_jobs.apps.entries import AppEntry

#: How many app ids a message lists.
_MOST_LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """One install of an app; the same code can be installed several times.

    Attributes:
        id: the app id, which the messages of its jobs carry.
        definition: the app's code.
        config: what the operator configured.
        team_id: whose events its hooks see.
        enabled: whether it runs at all.
        order: hooks run in ascending order, those of the same one as they were installed.
        version: grows with every change of the installation.
    """

    id: str
    definition: AppDefinition
    config: Mapping[str, Any] = field(repr=False)
    team_id: int
    enabled: bool
    order: int
    version: int


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What became of an entry in this process.

    Attributes:
        entry: what the operator said.
        installation: the installation; None if it is broken, removed, or disabled in the store.
        error: why it is broken.
        attempts: how often it could not be loaded.
        retry_at: when to load it again, in seconds of the monotonic clock.
    """

    entry: AppEntry
    installation: Installation | None = None
    error: AppError | None = None
    attempts: int = 0
    retry_at: float = math.inf


class Installations:
    """The installations of a process. An app that cannot be loaded does not harm the others.

    Those of the configuration stay as they are; those of the store are replaced by `take`.
    """

    __slots__ = ("_configured", "_definitions", "_known", "_running", "_stored", "retry_at")

    def __init__(self, apps: Mapping[str, Any], *, default_team_id: int) -> None:
        """Load the apps of the setting `posthog_jobs_apps`.

        Args:
            apps: app id → module or path, or → a mapping with `module` and optionally `config`
                (a mapping), `team_id`, `enabled` and `order`.
            default_team_id: the team of those that name none.

        Raises:
            ConfigurationError: an entry is of the wrong shape. Code that cannot be loaded is
                no error here but in `get`, and listed by `broken`.
        """
        entries = [
            read_entry(app_id, said, default_team_id=default_team_id, where="posthog_jobs_apps")
            for app_id, said in apps.items()
        ]
        self._configured: Final[dict[str, Loaded]] = {}
        self._stored: dict[str, Loaded] = {}
        sources: dict[str, str] = {}
        for entry in entries:
            self._configured[entry.id] = _loaded(entry, sources)
        self._arrange()

    def take(self, entries: Iterable[AppEntry]) -> list[Installation]:
        """Replace what came from the store; what did not change stays as it is.

        Args:
            entries: all that the store has; one that the configuration has too is left out.

        Returns:
            The installations that are there no more, or not so.
        """
        importlib.invalidate_caches()  # a file may be younger than what Python knows of its folder
        before, stored = self._stored, {}
        entries = [entry for entry in entries if entry.id not in self._configured]
        for entry in entries:
            known = before.get(entry.id)
            if known is not None and known.entry.version == entry.version:
                stored[entry.id] = known
        sources = _sources([*self._configured.values(), *stored.values()])
        for entry in sorted(entries, key=lambda entry: entry.since):
            if entry.id not in stored:
                stored[entry.id] = _loaded(entry, sources)
        self._stored = stored
        self._arrange()
        return [
            known.installation
            for app_id, known in before.items()
            if known.installation is not None and stored.get(app_id) is not known
        ]

    def retry(self) -> list[AppError]:
        """Load again what is broken in the store, and due; return the errors of what still is."""
        now, errors = monotonic(), []
        for app_id, known in list(self._stored.items()):
            if known.retry_at <= now:
                others = [*self._configured.values(), *self._stored.values()]
                again = self._stored[app_id] = _loaded(known.entry, _sources(others), known)
                if again.error is not None and str(again.error) != str(known.error):
                    errors.append(again.error)
        self._arrange()
        return errors

    def preview(self, entry: AppEntry) -> Installation:
        """Return the installation that an entry would be; nothing is kept.

        Raises:
            AppLoadError: its code cannot be loaded, or another app has its name.
            AppConfigError: its config is not what the app asks for.
        """
        others = [known for known in self._known.values() if known.entry.id != entry.id]
        installation = _installation(entry, _sources(others))
        if "export_events" in installation.definition.hooks:
            _, wrong = ExportOptions.of(installation.config)
            if wrong:  # one that is installed goes on with what can be
                field_name, _, what = wrong[0].partition(" ")
                raise AppConfigError(f"config field {field_name!r} {what}")
        return installation

    @property
    def all(self) -> Mapping[str, Loaded]:
        """Everything, disabled, broken or removed too, in the order in which hooks run."""
        return MappingProxyType(self._known)

    @property
    def broken(self) -> Mapping[str, AppError]:
        """The app ids of what could not be loaded, and why."""
        return MappingProxyType(
            {app_id: known.error for app_id, known in self._known.items() if known.error}
        )

    def __iter__(self) -> Iterator[Installation]:
        """The enabled installations, in the order in which their hooks run."""
        return iter(self._running)

    def get(self, app_id: str) -> Installation:
        """Return the installation of this id.

        Raises:
            UnknownAppError: there is none; AppRemovedError if there was.
            AppLoadError, AppConfigError: its code could not be loaded, or its config is wrong.
            AppDisabledError: it is disabled.
        """
        # from a message it may be anything
        known = self._known.get(app_id) if isinstance(app_id, str) else None
        if known is None:
            raise self._unknown(app_id)
        entry = known.entry
        if entry.is_removed:
            raise AppRemovedError(
                f"app id {app_id!r} was uninstalled; to run its jobs, install it again: celery -A "
                f"posthog_jobs apps install {entry.module} --id {app_id}"
            )
        if known.error is not None:
            raise known.error.with_traceback(None)  # it is raised many times
        if known.installation is None or not entry.enabled:
            raise AppDisabledError(
                f"app id {app_id!r} is disabled; enable it: celery -A posthog_jobs apps enable "
                f"{app_id}"
                if entry.is_stored
                else f"app id {app_id!r} is disabled; set enabled=True in posthog_jobs_apps and "
                "restart"
            )
        return known.installation

    def is_configured(self, app_id: str) -> bool:
        """Tell whether `posthog_jobs_apps` has this id, so that the store's is not used."""
        return app_id in self._configured

    def is_purged(self, app_id: str) -> bool:
        """Tell whether this id was uninstalled, and nothing that is kept for it shall stay."""
        known = self._stored.get(app_id)
        return known is not None and known.entry.is_removed and known.entry.is_purged

    def is_current(self, installation: Installation) -> bool:
        """Tell whether this installation has been neither changed nor removed."""
        known = self._known.get(installation.id)
        return known is not None and known.installation is installation

    def definition(self, app_name: str) -> AppDefinition | None:
        """Return the code of the enabled app of this name, or None."""
        return self._definitions.get(app_name)

    def of_team(self, team_id: int) -> list[Installation]:
        """Return the enabled installations of a team, in the order in which their hooks run."""
        return [installation for installation in self if installation.team_id == team_id]

    def _arrange(self) -> None:
        stored = sorted(self._stored.values(), key=lambda known: known.entry.since)
        ordered = sorted([*self._configured.values(), *stored], key=lambda known: known.entry.order)
        self._known = {known.entry.id: known for known in ordered}
        self._running = tuple(
            known.installation for known in ordered if known.installation and known.entry.enabled
        )
        self._definitions = {
            installation.definition.name: installation.definition for installation in self._running
        }
        self.retry_at = min((known.retry_at for known in stored), default=math.inf)

    def _unknown(self, app_id: object) -> UnknownAppError:
        known = [name for name, known in self._known.items() if not known.entry.is_removed]
        listed = ", ".join(known[:_MOST_LISTED]) or "none"
        more = f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else ""
        return UnknownAppError(
            f"no app is installed under the id {app_id!r}; {did_you_mean(app_id, known)}installed "
            f"are: {listed}{more}. Add it to posthog_jobs_apps and restart, or "
            "run celery -A posthog_jobs apps install"
        )


def _loaded(entry: AppEntry, sources: dict[str, str], before: Loaded | None = None) -> Loaded:
    if entry.is_removed or (entry.is_stored and not entry.enabled):
        return Loaded(entry=entry)
    try:
        return Loaded(entry=entry, installation=_installation(entry, sources))
    except AppError as error:
        named = type(error)(f"app id {entry.id!r}: {error}")
        named.__cause__ = error.__cause__
        attempts = 0 if before is None else before.attempts + 1
        delay = LOAD_AGAIN.delay(attempts) if entry.is_stored else None
        retry_at = math.inf if delay is None else monotonic() + delay
        return Loaded(entry=entry, error=named, attempts=attempts, retry_at=retry_at)


def _installation(entry: AppEntry, sources: dict[str, str]) -> Installation:
    definition = load_app(entry.module)
    first = sources.setdefault(definition.name, definition.source)
    if first != definition.source:
        raise AppLoadError(
            f"the app name {definition.name!r} of {definition.source!r} is taken by {first!r}; "
            'rename the module, or set "name" in a plugin.json'
        )
    schema = definition.manifest.schema
    config = schema.check(entry.config)
    keep_secret(schema.secrets(config))
    return Installation(
        id=entry.id,
        definition=definition,
        config=MappingProxyType(config),
        team_id=entry.team_id,
        enabled=entry.enabled,
        order=entry.order,
        version=entry.version,
    )


def _sources(loaded: Iterable[Loaded]) -> dict[str, str]:
    """Return app name → source of what is installed."""
    return {
        known.installation.definition.name: known.installation.definition.source
        for known in loaded
        if known.installation is not None
    }
