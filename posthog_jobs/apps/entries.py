"""What an operator says of an install: which module, under which id, with which config."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from posthog_jobs.errors import ConfigurationError, did_you_mean

_APP_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_FIELDS: Final = {"module": str, "config": Mapping, "team_id": int, "enabled": bool, "order": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEntry:
    """One install, before its code is loaded.

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
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise ConfigurationError(
                f"{where}[{name!r}] is of type {type(value).__name__}; make it {kind.__name__}"
            )
    if not said.get("module"):
        raise ConfigurationError(f'{where} names no module; add "module": "package.module"')
    return AppEntry(
        id=app_id,
        module=said["module"],
        config=copy.deepcopy(dict(said.get("config", {}))),
        team_id=said.get("team_id", default_team_id),
        enabled=said.get("enabled", True),
        order=said.get("order", 0),
    )
