"""An installation: what an operator said of it, what became of it here, and who else is there."""

from __future__ import annotations

import copy
import importlib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.export_options import ExportOptions
from posthog_jobs.apps.loading import load_app
from posthog_jobs.errors import (
    AppConfigError,
    AppDisabledError,
    AppError,
    AppLoadError,
    AppRemovedError,
    ConfigurationError,
    UnknownAppError,
    did_you_mean,
    is_whole,
)
from posthog_jobs.jobs.retry import LOAD_AGAIN
from posthog_jobs.redaction import MASK, keep_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from posthog_jobs.apps.definition import AppDefinition

_APP_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_FIELDS: Final = {"module": str, "config": Mapping, "team_id": int, "enabled": bool, "order": int}

#: How many app ids a message lists.
_MOST_LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEntry:
    """What an operator said of an installation: which module, under which id, with which config.

    Attributes:
        id: the app id, which the messages of its jobs carry.
        module: an importable module, or the path of a file or a folder.
        config: what the operator configured.
        team_id: whose events its hooks see.
        enabled: whether it runs at all.
        order: hooks run in ascending order, those of the same one as they were installed.
        version: grows with every change.
        since: the version at which it was installed; 0 for one of the configuration.
        is_removed: whether it was uninstalled; kept so that its jobs are told so.
        is_purged: whether what it keeps was deleted with it, and what it still writes shall be.
    """

    id: str
    module: str
    config: Mapping[str, Any] = field(repr=False)
    team_id: int
    enabled: bool = True
    order: int = 0
    version: int = 1
    since: int = 0
    is_removed: bool = False
    is_purged: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether it is in the store, and not in the configuration."""
        return self.since > 0

    @property
    def is_loaded(self) -> bool:
        """Whether its code is loaded: not if it was removed, or is disabled in the store."""
        return not self.is_removed and (self.enabled or not self.is_stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An installation that can run; the same code can be installed several times.

    Attributes:
        id: the app id.
        definition: the app's code.
        config: what the operator configured, checked, with the app's defaults.
        team_id: whose events its hooks see.
        version: grows with every change of the installation.
    """

    id: str
    definition: AppDefinition
    config: Mapping[str, Any] = field(repr=False)
    team_id: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledApp:
    """What became of an installation in this process, as an operator sees it.

    Attributes:
        entry: id, module, config, team, and whether it is enabled.
        installation: what runs; None if it is broken, removed, or disabled in the store.
        error: why it is broken; None if it is not.
        attempts: how often it could not be loaded.
        retry_at: when to load it again, in seconds of the monotonic clock.
    """

    entry: AppEntry
    installation: Installation | None = field(default=None, repr=False)
    error: AppError | None = None
    attempts: int = field(default=0, repr=False)
    retry_at: float = field(default=math.inf, repr=False)

    @property
    def definition(self) -> AppDefinition | None:
        """Its code; None if it is broken, or disabled in the store and so not loaded."""
        return None if self.installation is None else self.installation.definition

    @property
    def masked_config(self) -> Mapping[str, Any]:
        """The config as it may be shown: without secrets; all are masked if no code says which."""
        if self.definition is None:
            return dict.fromkeys(self.entry.config, MASK)
        return self.definition.manifest.schema.mask(self.entry.config)

    def stored_as(self, entry: AppEntry) -> InstalledApp:
        """Return what it became once it was stored, with the version that it has now."""
        installation = self.installation if entry.is_loaded else None
        if installation is not None:
            installation = replace(installation, version=entry.version)
        return replace(self, entry=entry, installation=installation)


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
        self._configured: Final[dict[str, InstalledApp]] = {}
        self._stored: dict[str, InstalledApp] = {}
        sources: dict[str, str] = {}
        for entry in entries:
            self._configured[entry.id] = _loaded(entry, sources)
        self._arrange()

    def take(
        self, entries: Iterable[AppEntry], checked: InstalledApp | None = None
    ) -> list[Installation]:
        """Replace what came from the store; what did not change stays as it is.

        Args:
            entries: all that the store has; one that the configuration has too is left out.
            checked: what `preview` has made of one of them.

        Returns:
            The installations that are there no more, or not so.
        """
        importlib.invalidate_caches()  # a file may be younger than what Python knows of its folder
        entries = [entry for entry in entries if entry.id not in self._configured]
        before = known = self._stored
        if checked is not None and checked.installation is not None:
            known = {**before, checked.entry.id: checked}
        stored = {
            entry.id: known[entry.id]
            for entry in entries
            if entry.id in known and known[entry.id].entry.version == entry.version
        }
        sources = _sources([*self._configured.values(), *stored.values()])
        for entry in sorted(entries, key=lambda entry: entry.since):
            if entry.id not in stored:
                stored[entry.id] = _loaded(entry, sources)
        self._stored = stored
        self._arrange()
        return [
            app.installation
            for app_id, app in before.items()
            if app.installation is not None and stored.get(app_id) is not app
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

    def preview(
        self, entry: AppEntry, old: Mapping[str, Any], stored: Iterable[AppEntry]
    ) -> InstalledApp:
        """Return what an entry would become; nothing is kept.

        Args:
            entry: what an operator said; of its config, what shall change.
            old: its config before.
            stored: all that the store has, where other apps may have its app's name.

        Raises:
            AppLoadError: its code cannot be loaded, or another app has its name.
            AppConfigError: its config is not what the app asks for.
        """
        definition, sources = load_app(entry.module), _sources(self._configured.values())
        for other in stored:
            if other.id not in {entry.id, *self._configured} and other.is_loaded:
                with suppress(AppError):
                    named = load_app(other.module)
                    sources.setdefault(named.name, named.source)
        entry = replace(entry, config=definition.manifest.schema.merge(old, entry.config))
        installation = _installation(entry, definition, sources)
        if "export_events" in definition.hooks:
            _, wrong = ExportOptions.of(installation.config)
            if wrong:  # one that is installed goes on with what can be
                raise AppConfigError(f"config field {wrong[0]}")
        return InstalledApp(entry=entry, installation=installation)

    @property
    def all(self) -> Mapping[str, InstalledApp]:
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


def read_entry(app_id: object, said: object, *, default_team_id: int, where: str) -> AppEntry:
    """Check what an operator says of an install.

    Args:
        app_id: its id.
        said: the module or path, or a mapping with `module` and optionally `config` (a mapping),
            `team_id`, `enabled` and `order`.
        default_team_id: the team of one that names none.
        where: where it is said, for messages.

    Raises:
        ConfigurationError: it is of the wrong shape.
    """
    if not isinstance(app_id, str) or not _APP_ID.match(app_id):
        raise ConfigurationError(
            f"{where} has the app id {app_id!r}; use a string of up to 100 letters, digits, dots, "
            "dashes and underscores"
        )
    if isinstance(said, str):
        said = {"module": said}
    where = f"{where}[{app_id!r}]"
    if not isinstance(said, Mapping):
        raise ConfigurationError(
            f"{where} is of type {type(said).__name__}; use a module's name or a mapping such as "
            '{"module": "examples.teapot", "config": {}}'
        )
    for name, value in said.items():
        kind = _FIELDS.get(name)
        if kind is None:
            raise ConfigurationError(
                f"{where} has the unknown field {name!r}; {did_you_mean(name, _FIELDS)}the fields "
                f"are {', '.join(_FIELDS)}"
            )
        if not (is_whole(value) if kind is int else isinstance(value, kind)):
            raise ConfigurationError(
                f"{where}[{name!r}] is of type {type(value).__name__}; make it {kind.__name__}"
            )
    if not said.get("module"):
        raise ConfigurationError(f'{where} names no module; add "module": "package.module"')
    config = copy.deepcopy(dict(said.get("config", {})))
    return AppEntry(id=app_id, **{"team_id": default_team_id, **said, "config": config})


def _loaded(
    entry: AppEntry, sources: dict[str, str], before: InstalledApp | None = None
) -> InstalledApp:
    if not entry.is_loaded:
        return InstalledApp(entry=entry)
    try:
        installation = _installation(entry, load_app(entry.module), sources)
    except AppError as error:
        named = type(error)(f"app id {entry.id!r}: {error}")
        named.__cause__ = error.__cause__
        attempts = 0 if before is None else before.attempts + 1
        delay = LOAD_AGAIN.delay(attempts) if entry.is_stored else None
        retry_at = math.inf if delay is None else monotonic() + delay
        return InstalledApp(entry=entry, error=named, attempts=attempts, retry_at=retry_at)
    return InstalledApp(entry=entry, installation=installation)


def _installation(
    entry: AppEntry, definition: AppDefinition, sources: dict[str, str]
) -> Installation:
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
        version=entry.version,
    )


def _sources(loaded: Iterable[InstalledApp]) -> dict[str, str]:
    """Return app name → source of what is installed."""
    return {
        known.installation.definition.name: known.installation.definition.source
        for known in loaded
        if known.installation is not None
    }
