"""Where installations live that change at run time: a hash on Redis, with one version for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from posthog_jobs.apps.installation import AppEntry, InstalledApp, read_entry
from posthog_jobs.broker.redis import APPS_VERSION
from posthog_jobs.broker.scripts import CHANGE_APP
from posthog_jobs.errors import ConfigurationError
from posthog_jobs.jobs.payload import encode, loads

if TYPE_CHECKING:
    from posthog_jobs.broker.redis import Keys, RedisServer

logger = logging.getLogger(__name__)

#: Given all that is stored, by app id; returns what one of them shall be, and would become.
Edit = Callable[[Mapping[str, AppEntry]], InstalledApp]

_WHAT: Final = "the installed apps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a store holds at one moment.

    Attributes:
        version: grows with each change of any entry; 0 for a store that has had none.
        entries: app id → entry, those that were removed too.
    """

    version: int
    entries: Mapping[str, AppEntry]


class InstallationStore(Protocol):
    """Where installations live that change at run time.

    Every method raises StoreUnavailableError when it does not answer, and ConfigurationError
    when there is none.
    """

    def version(self) -> int:
        """Return the newest version, at the least cost."""
        ...

    def read(self) -> Snapshot:
        """Return all that is stored; an entry that cannot be read is logged and left out."""
        ...

    def change(self, app_id: str, edit: Edit) -> InstalledApp:
        """Change one entry.

        Args:
            app_id: its id.
            edit: returns the new entry, given what is stored, or raises, and nothing is changed;
                called again where somebody else was faster. One that it returns as it is stays.

        Returns:
            What `edit` returned, as it is stored now.
        """
        ...


class RedisStore:
    """The store on Redis."""

    __slots__ = ("_server",)

    def __init__(self, server: RedisServer) -> None:
        """Remember the server; it is connected to by the first call."""
        self._server: Final = server

    def version(self) -> int:
        """Return the newest version."""
        version = self._server.call(lambda redis, keys: redis.hget(keys.apps, APPS_VERSION), _WHAT)
        return int(version or 0)

    def read(self) -> Snapshot:
        """Return all that is stored; an entry that cannot be read is logged and left out."""
        return _snapshot(self._server.call(lambda redis, keys: redis.hgetall(keys.apps), _WHAT))

    def change(self, app_id: str, edit: Edit) -> InstalledApp:
        """Change one entry; the new version is Redis' clock, in ms, or one more than the last.

        So a version is never used twice, not even after the store was emptied.
        """

        def call(redis: Any, keys: Keys) -> InstalledApp:
            while True:
                stored = _snapshot(redis.hgetall(keys.apps))
                seconds, microseconds = redis.time()
                before, app = stored.entries.get(app_id), edit(stored.entries)
                if app.entry == before:
                    return app
                version = max(stored.version + 1, seconds * 1000 + microseconds // 1000)
                is_new = before is None or before.is_removed
                since = version if is_new else app.entry.since
                entry = replace(app.entry, version=version, since=since)
                values = (stored.version, version, app_id, _encoded(entry))
                if CHANGE_APP(redis, [keys.apps], values):
                    return app.stored_as(entry)

        return self._server.call(call, _WHAT)


def _snapshot(kept: dict[Any, Any]) -> Snapshot:
    found = {name.decode(): text for name, text in kept.items()}
    version = int(found.pop(APPS_VERSION, 0))
    entries = {app_id: _decoded(app_id, text) for app_id, text in found.items()}
    return Snapshot(
        version=version, entries={app_id: entry for app_id, entry in entries.items() if entry}
    )


def _encoded(entry: AppEntry) -> str:
    return encode({**asdict(replace(entry, config={})), "config": dict(entry.config)})


def _decoded(app_id: str, text: Any) -> AppEntry | None:
    try:
        said = loads(text)
        del said["id"]
        version, since = int(said.pop("version")), int(said.pop("since"))
        is_removed, is_purged = bool(said.pop("is_removed")), bool(said.pop("is_purged"))
        entry = read_entry(app_id, said, default_team_id=1, where="the store")
    except (ValueError, TypeError, KeyError, AttributeError, ConfigurationError):
        # without the traceback, which may show what is in it
        logger.warning("the store's entry of app id %r cannot be read; install it again", app_id)
        return None
    return replace(entry, version=version, since=since, is_removed=is_removed, is_purged=is_purged)
