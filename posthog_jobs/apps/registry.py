"""The registry of who is installed, as of now: the configuration's apps, and those of a store.

The store may change at any time. Each process learns of that at the least cost.
"""

from __future__ import annotations

import logging
import mmap
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from posthog_jobs.apps.installation import Installations
from posthog_jobs.errors import AppError, ConfigurationError, StoreUnavailableError
from posthog_jobs.jobs.execution import after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from posthog_jobs.apps.installation import Installation, InstalledApp
    from posthog_jobs.apps.store import InstallationStore, Snapshot
    from posthog_jobs.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between two questions where nobody tells the version, and after one without an answer.
INTERVAL: Final = 0.5

_UNKNOWN: Final = -1


class SharedVersion:
    """The store's newest version, in memory that a worker's parent shares with its forks.

    The parent learns it from the broker with every turn, before it hands out what it fetched; so
    a child knows, for the price of reading a number, whether its installations are those of the
    time at which its job was sent.
    """

    __slots__ = ("_cell", "_lock")

    def __init__(self) -> None:
        # anonymous memory, which forks share; a number of 64 bits is written at once
        self._cell: Final = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._cell[0] = _UNKNOWN
        self._lock: Final = threading.Lock()

    @property
    def value(self) -> int | None:
        """The newest version, or None where nobody tells."""
        value = self._cell[0]
        return None if value == _UNKNOWN else value

    def note(self, version: int) -> None:
        """Keep a version, if it is the newest: replies of two connections may overtake."""
        if version > self._cell[0]:
            with self._lock:
                self._cell[0] = max(version, self._cell[0])

    def forget(self) -> None:
        """Note that nobody tells any more, when a worker in this process has ended."""
        self._cell[0] = _UNKNOWN


class Registry:
    """The installations of a process, which takes changes of the store as they come.

    Attributes:
        known: who was installed when that was looked at last.
        seen: the newest version of the store that the worker has seen, if this is one.
    """

    __slots__ = (
        "__weakref__",
        "_is_away",
        "_is_off",
        "_is_refreshing",
        "_listeners",
        "_lock",
        "_next",
        "_overruled",
        "_retire",
        "_store",
        "_taken",
        "known",
        "seen",
    )

    def __init__(
        self,
        settings: Settings,
        store: InstallationStore | None,
        retire: Callable[[Installation], object],
    ) -> None:
        """Load the apps of the configuration; one that cannot be loaded is logged and left out.

        Args:
            settings: what is configured.
            store: where more installations live; read when the first is asked for.
            retire: called with each installation that is there no more, or not so.
        """
        self.known: Final = Installations(settings.apps, default_team_id=settings.default_team_id)
        self.seen: Final = SharedVersion()
        _log(self.known.broken.values())
        self._store: Final = store
        self._retire: Final = retire
        self._overruled: Final[set[str]] = set()
        self._taken = -1  # the version of the store that was taken last
        self._next = 0.0  # no question before this, in seconds of the monotonic clock
        self._is_away = False
        self._is_off = store is None
        self._lock = threading.RLock()
        self._is_refreshing = False
        self._listeners: list[Callable[[], object]] = []
        after_fork(self._forget_parent)

    @property
    def current(self) -> Installations:
        """Who is installed, as of now."""
        self.refresh()
        return self.known

    def get(self, app_id: str) -> Installation:
        """Return the installation of this id, as of now.

        Raises:
            AppError: it cannot run; see `Installations.get`.
        """
        try:
            return self.current.get(app_id)
        except AppError:
            if self.seen.value is not None:
                raise
        # nobody tells this process of changes: this one may be younger than the last question
        self.refresh(ask=True)
        return self.known.get(app_id)

    def refresh(self, *, ask: bool = False, checked: InstalledApp | None = None) -> None:
        """Take what operators have changed; without news that costs a comparison.

        That the store does not answer is logged once.

        Args:
            ask: ask the store, though it was asked just now, and though a worker knows its version.
            checked: what this process itself has stored, and need not load again.
        """
        if not (ask or self._may_have_news() or self.known.retry_at <= monotonic()):
            return
        with self._lock:
            if self._is_refreshing:  # code of an app, while it is imported here
                return
            self._is_refreshing = True
            try:
                changed = (ask or self._may_have_news()) and self._has_taken_news(checked, ask=ask)
                if self.known.retry_at <= monotonic():
                    changed = True
                    _log(self.known.retry())
            finally:
                self._is_refreshing = False
        if changed:
            for listener in self._listeners:
                listener()

    def on_change(self, listener: Callable[[], object]) -> None:
        """Call something in this process, not in its forks, whenever installations have changed.

        Args:
            listener: called without arguments, after the change was taken, by the thread that
                took it; it must neither block nor raise.
        """
        self._listeners.append(listener)

    def follow(self) -> None:
        """Take changes as they come, for as long as the process lives; for a thread of its own."""
        while True:
            sleep(INTERVAL)
            try:
                self.refresh()
            except Exception:
                logger.exception("the installed apps could not be refreshed; that is tried again")

    def _may_have_news(self) -> bool:
        """Tell whether it is worth a read; for a worker on Redis that means: there are news."""
        seen = self.seen.value
        if seen is not None and not self._is_away:
            return seen > self._taken
        return not self._is_off and monotonic() >= self._next

    def _has_taken_news(self, checked: InstalledApp | None, *, ask: bool) -> bool:
        """Take what is stored, unless that is what was taken before, and tell whether it was."""
        if self._store is None:
            return False
        begun = monotonic()
        try:
            seen = self.seen.value
            if ask or (seen is None and self._taken >= 0):
                seen = self._store.version()
            snapshot = None if seen is not None and seen <= self._taken else self._store.read()
        except ConfigurationError:  # there is no Redis, and so nothing installed there
            self._is_off = True
            return False
        except StoreUnavailableError as error:
            if not self._is_away:
                logger.warning("%s; what was installed before goes on", error)
            self._is_away = True
            now = monotonic()
            self._next = now + max(INTERVAL, now - begun)
            return False
        if self._is_away:
            logger.info("the installed apps can be read again")
        self._is_away = False
        self._next = monotonic() + INTERVAL
        if snapshot is None:
            return False
        self._take(snapshot, checked)
        # last, so that until then every thread waits for it; and as new as the worker knows,
        # though the store was emptied meanwhile
        self._taken = max(snapshot.version, seen or 0)
        return True

    def _take(self, snapshot: Snapshot, checked: InstalledApp | None) -> None:
        errors = set(self.known.broken.values())
        overruled = {
            entry.id
            for entry in snapshot.entries.values()
            if self.known.is_configured(entry.id) and not entry.is_removed
        }
        for app_id in overruled - self._overruled:
            logger.warning(
                "app id %r is in posthog_jobs_apps and in the store; the former counts. Take it "
                "out of one of them",
                app_id,
            )
        self._overruled.update(overruled)
        for installation in self.known.take(snapshot.entries.values(), checked):
            self._retire(installation)
        _log(error for error in self.known.broken.values() if error not in errors)

    def _forget_parent(self) -> None:
        # the thread that held the lock in the parent is not here, nor are those to be told
        self._lock = threading.RLock()
        self._is_refreshing = False
        self._listeners = []


def _log(errors: Iterable[AppError]) -> None:
    for error in errors:
        logger.error("%s", error, exc_info=error.__cause__)
