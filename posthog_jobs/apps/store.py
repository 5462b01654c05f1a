"""Where installations live that change at run time: a hash on Redis, with one version for all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.exceptions import WatchError

from posthog_jobs.apps.entries import AppEntry, read_entry
from posthog_jobs.broker.redis import APPS_VERSION
from posthog_jobs.errors import ConfigurationError
from posthog_jobs.jobs.payload import encode, loads

if TYPE_CHECKING:
    from redis import Redis

    from posthog_jobs.broker.redis import Keys, RedisServer

logger = logging.getLogger(__name__)

#: Given what is installed under an id, or was, or None; returns what shall be.
Edit = Callable[[AppEntry | None], AppEntry]

_WHAT: Final = "the installed apps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a store holds at one moment.

    Attributes:
        version: grows with each change of any entry; 0 for a store that has had none.
        entries: all of them, those that were removed too.
    """

    version: int
    entries: tuple[AppEntry, ...]


class InstallationStore(Protocol):
    """Where installations live that change at run time.

    Every method raises StoreUnavailableError when it does not answer, and ConfigurationError
    when there is none.
    """

    def version(self) -> int:
        """Return the newest version, at the least cost."""
        ...

    def read(self) -> Snapshot:
        """Return all that is stored."""
        ...

    def change(self, app_id: str, edit: Edit) -> AppEntry:
        """Change one entry, so that no change of somebody else's is lost.

        Args:
            app_id: which one.
            edit: makes the new entry of the one before, with what it refuses as its exception;
                called again where somebody else was faster. One that it returns as it is stays.

        Returns:
            What is stored now.
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

        def call(redis: Redis, keys: Keys) -> int:
            return int(redis.hget(keys.apps, APPS_VERSION) or 0)

        return self._server.call(call, _WHAT)

    def read(self) -> Snapshot:
        """Return all that is stored; an entry that cannot be read is logged and left out."""

        def call(redis: Redis, keys: Keys) -> dict[Any, Any]:
            return redis.hgetall(keys.apps)

        found = {name.decode(): text for name, text in self._server.call(call, _WHAT).items()}
        version = int(found.pop(APPS_VERSION, 0))
        entries = (_decoded(app_id, text) for app_id, text in found.items())
        return Snapshot(version=version, entries=tuple(entry for entry in entries if entry))

    def change(self, app_id: str, edit: Edit) -> AppEntry:
        """Change one entry; the new version is Redis' clock, in ms, or one more than the last.

        So a version is never used twice, not even after the store was emptied.
        """

        def call(redis: Redis, keys: Keys) -> AppEntry:
            while True:
                pipe: Any
                with redis.pipeline() as pipe:
                    pipe.watch(keys.apps)
                    text, last = pipe.hmget(keys.apps, [app_id, APPS_VERSION])
                    seconds, microseconds = pipe.time()
                    before = None if text is None else _decoded(app_id, text)
                    entry = edit(before)
                    if entry == before:
                        return entry
                    version = max(int(last or 0) + 1, seconds * 1000 + microseconds // 1000)
                    is_new = before is None or before.is_removed
                    entry = replace(
                        entry, version=version, since=version if is_new else entry.since
                    )
                    pipe.multi()
                    pipe.hset(keys.apps, mapping={app_id: _encoded(entry), APPS_VERSION: version})
                    try:
                        pipe.execute()
                    except WatchError:  # somebody else was faster
                        continue
                    return entry

        return self._server.call(call, _WHAT)


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
        logger.warning("the store's entry of app id %r is no entry; install it again", app_id)
        return None
    return replace(entry, version=version, since=since, is_removed=is_removed, is_purged=is_purged)
