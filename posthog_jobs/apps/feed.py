"""Tells when the store has changed, at the least cost, and reads it then."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import ConfigurationError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.apps.shared_version import SharedVersion
    from posthog_jobs.apps.store import InstallationStore, Snapshot

logger = logging.getLogger(__name__)

#: Seconds between two questions where nobody tells the version, and after one without an answer.
INTERVAL: Final = 0.5


class Feed:
    """The changes of a store, as one process takes them."""

    __slots__ = ("_is_away", "_is_off", "_next", "_seen", "_store", "_taken")

    def __init__(self, store: InstallationStore, seen: SharedVersion) -> None:
        """Remember both; nothing is read yet.

        Args:
            store: what may change.
            seen: the newest version, if this is a worker.
        """
        self._store: Final = store
        self._seen: Final = seen
        self._taken = -1
        self._next = 0.0  # no question before this, in seconds of the monotonic clock
        self._is_away = False
        self._is_off = False

    def may_have_news(self) -> bool:
        """Tell whether it is worth a read; for a worker on Redis that means: there are news."""
        seen = self._seen.value
        if seen is not None and not self._is_away:
            return seen > self._taken
        return not self._is_off and monotonic() >= self._next

    def follow(self, take: Callable[[Snapshot], None], *, ask: bool = False) -> None:
        """Pass on what is stored, unless that is what was passed on before.

        That the store does not answer is logged once.

        Args:
            take: called with what is stored.
            ask: ask for the version even if a worker knows one.
        """
        begun = monotonic()
        try:
            seen = self._seen.value
            if ask or (seen is None and self._taken >= 0):
                seen = self._store.version()
            snapshot = None if seen is not None and seen <= self._taken else self._store.read()
        except ConfigurationError:  # there is no Redis, and so nothing installed there
            self._is_off = True
            return
        except StoreUnavailableError as error:
            if not self._is_away:
                logger.warning("%s; what was installed before goes on", error)
            self._is_away = True
            now = monotonic()
            self._next = now + max(INTERVAL, now - begun)
            return
        if self._is_away:
            logger.info("the installed apps can be read again")
        self._is_away = False
        self._next = monotonic() + INTERVAL
        if snapshot is not None:
            take(snapshot)
            # last, so that until then every thread waits for it; and as new as the worker knows,
            # though the store was emptied meanwhile
            self._taken = max(snapshot.version, seen or 0)
