"""Who is installed, as of now: the configuration's apps, and those of a store that may change."""

from __future__ import annotations

import logging
import os
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from posthog_jobs.apps.feed import INTERVAL, Feed
from posthog_jobs.apps.installation import Installations
from posthog_jobs.apps.shared_version import SharedVersion
from posthog_jobs.errors import AppError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.apps.store import InstallationStore, Snapshot
    from posthog_jobs.settings import Settings

logger = logging.getLogger(__name__)


class Roster:
    """The installations of a process, which takes changes of the store as they come.

    Attributes:
        seen: the newest version of the store that the worker has seen, if this is one.
    """

    __slots__ = (
        "_feed",
        "_installations",
        "_is_refreshing",
        "_listeners",
        "_lock",
        "_overruled",
        "_pid",
        "_retire",
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
        self.seen: Final = SharedVersion()
        self._installations: Final = Installations(
            settings.apps, default_team_id=settings.default_team_id
        )
        _log(self._installations.broken.values())
        self._feed: Final = None if store is None else Feed(store, self.seen)
        self._retire: Final = retire
        self._lock = threading.RLock()
        self._is_refreshing = False
        self._pid = os.getpid()
        self._listeners: Final[list[tuple[int, Callable[[], object]]]] = []
        self._overruled: Final[set[str]] = set()

    @property
    def known(self) -> Installations:
        """Who was installed when that was looked at last."""
        return self._installations

    @property
    def current(self) -> Installations:
        """Who is installed, as of now."""
        self.refresh()
        return self._installations

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
        return self._installations.get(app_id)

    def refresh(self, *, ask: bool = False) -> None:
        """Take what operators have changed; without news that costs a comparison.

        Args:
            ask: ask the store, though it was asked just now.
        """
        feed = self._feed
        if feed is None or not (
            ask or feed.may_have_news() or self._installations.retry_at <= monotonic()
        ):
            return
        if self._pid != os.getpid():  # the thread that held it in the parent is not here
            self._lock, self._is_refreshing, self._pid = threading.RLock(), False, os.getpid()
        changed = False

        def take(snapshot: Snapshot) -> None:
            nonlocal changed
            changed = True
            self._take(snapshot)

        with self._lock:
            if self._is_refreshing:  # code of an app, while it is imported here
                return
            self._is_refreshing = True
            try:
                if ask or feed.may_have_news():
                    feed.follow(take, ask=ask)
                if self._installations.retry_at <= monotonic():
                    changed = True
                    _log(self._installations.retry())
            finally:
                self._is_refreshing = False
        if changed:
            for pid, listener in self._listeners:
                if pid == os.getpid():
                    listener()

    def on_change(self, listener: Callable[[], object]) -> None:
        """Call something in this process, not in its forks, whenever installations have changed.

        Args:
            listener: called without arguments, after the change was taken, by the thread that
                took it; it must neither block nor raise.
        """
        self._listeners.append((os.getpid(), listener))

    def follow(self) -> None:
        """Take changes as they come, for as long as the process lives; for a thread of its own."""
        while True:
            sleep(INTERVAL)
            try:
                self.refresh()
            except Exception:
                logger.exception("the installed apps could not be refreshed; that is tried again")

    def _take(self, snapshot: Snapshot) -> None:
        before = self._installations.broken
        for entry in snapshot.entries:
            if (
                self._installations.is_configured(entry.id)
                and not entry.is_removed
                and entry.id not in self._overruled
            ):
                self._overruled.add(entry.id)
                logger.warning(
                    "app id %r is in posthog_jobs_apps and in the store; the former counts. Take "
                    "it out of one of them",
                    entry.id,
                )
        for installation in self._installations.take(snapshot.entries):
            self._retire(installation)
        broken = self._installations.broken
        _log(error for app_id, error in broken.items() if error is not before.get(app_id))


def _log(errors: Iterable[AppError]) -> None:
    for error in errors:
        logger.error("%s", error, exc_info=error.__cause__)
