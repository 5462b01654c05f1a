"""An app's install: an id, the app's code, a config and a team."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import AppDisabledError, AppLoadError, ConfigurationError, UnknownAppError
from posthog_jobs.loading import load_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from posthog_jobs.definitions import AppDefinition

_APP_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_FIELDS: Final = {"module": str, "config": Mapping, "team_id": int, "enabled": bool, "order": int}


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
    config: Mapping[str, Any]
    team_id: int
    enabled: bool
    order: int
    version: int


class Installations:
    """The installations of a process. An app that cannot be loaded does not harm the others."""

    __slots__ = ("_broken", "_installed")

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
        entries = {app_id: _entry(app_id, entry) for app_id, entry in apps.items()}
        self._broken: dict[str, AppLoadError] = {}
        installed: list[Installation] = []
        sources: dict[str, str] = {}
        for app_id, entry in entries.items():
            try:
                definition = _definition(entry["module"], sources)
            except AppLoadError as error:
                self._broken[app_id] = AppLoadError(f"app id {app_id!r}: {error}")
                self._broken[app_id].__cause__ = error.__cause__
                continue
            installed.append(
                Installation(
                    id=app_id,
                    definition=definition,
                    config=MappingProxyType(copy.deepcopy(dict(entry.get("config", {})))),
                    team_id=entry.get("team_id", default_team_id),
                    enabled=entry.get("enabled", True),
                    order=entry.get("order", 0),
                    version=1,
                )
            )
        installed.sort(key=lambda installation: installation.order)
        self._installed: Final = {installation.id: installation for installation in installed}

    @property
    def broken(self) -> Mapping[str, AppLoadError]:
        """The app ids whose code could not be loaded, and why."""
        return MappingProxyType(self._broken)

    def __iter__(self) -> Iterator[Installation]:
        """The enabled installations, in the order in which their hooks run."""
        return (installation for installation in self._installed.values() if installation.enabled)

    def get(self, app_id: str) -> Installation:
        """Return the installation of this id.

        Raises:
            UnknownAppError: there is none.
            AppLoadError: its code could not be loaded.
            AppDisabledError: it is disabled.
        """
        # from a message it may be anything
        installation = self._installed.get(app_id) if isinstance(app_id, str) else None
        if installation is None:
            if isinstance(app_id, str) and app_id in self._broken:
                raise self._broken[app_id].with_traceback(None)  # it is raised many times
            known = ", ".join([*self._installed, *self._broken]) or "none"
            close = difflib.get_close_matches(str(app_id), self._installed, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UnknownAppError(
                f"no app is installed under the id {app_id!r}{hint}; installed are: {known}. Add "
                "it to posthog_jobs_apps and restart"
            )
        if not installation.enabled:
            raise AppDisabledError(
                f"app id {app_id!r} is disabled; set enabled=True in posthog_jobs_apps and restart"
            )
        return installation

    def of_team(self, team_id: int) -> list[Installation]:
        """Return the enabled installations of a team, in the order in which their hooks run."""
        return [installation for installation in self if installation.team_id == team_id]


def _definition(source: str, sources: dict[str, str]) -> AppDefinition:
    definition = load_app(source)
    first = sources.setdefault(definition.name, definition.source)
    if first != definition.source:
        raise AppLoadError(
            f"the app name {definition.name!r} of {definition.source!r} is taken by {first!r}; "
            'rename the module, or set "name" in a plugin.json'
        )
    return definition


def _entry(app_id: object, entry: object) -> Mapping[str, Any]:
    if not isinstance(app_id, str) or not _APP_ID.match(app_id):
        raise ConfigurationError(
            f"posthog_jobs_apps has the app id {app_id!r}; use a string of up to 100 letters, "
            "digits, dots, dashes and underscores"
        )
    if isinstance(entry, str):
        entry = {"module": entry}
    where = f"posthog_jobs_apps[{app_id!r}]"
    if not isinstance(entry, Mapping):
        raise ConfigurationError(
            f"{where} is of type {type(entry).__name__}; use a module's name or a mapping such as "
            '{"module": "examples.teapot", "config": {}}'
        )
    for field, value in entry.items():
        kind = _FIELDS.get(field)
        if kind is None:
            close = difflib.get_close_matches(str(field), _FIELDS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigurationError(
                f"{where} has the unknown field {field!r}; {hint}the fields are "
                f"{', '.join(_FIELDS)}"
            )
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise ConfigurationError(
                f"{where}[{field!r}] is of type {type(value).__name__}; make it {kind.__name__}"
            )
    if not entry.get("module"):
        raise ConfigurationError(f'{where} names no module; add "module": "package.module"')
    return entry
