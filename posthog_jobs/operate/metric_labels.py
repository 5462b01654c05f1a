"""The labels of metrics: names of apps and jobs, of which there are never too many."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: An app's name and a job's.
Pair = tuple[str, str]

#: How many pairs of app and job have labels of their own; each is some 40 time series.
MOST: Final = 200

#: What no installed app exports; a message may name anything.
UNKNOWN: Final[Pair] = ("unknown", "unknown")
#: What came after the first `MOST`.
OTHER: Final[Pair] = ("other", "other")


class MetricLabels:
    """Which labels a job's metrics have, for the life of a worker. Safe in threads."""

    __slots__ = ("_is_known", "_lock", "_most", "_pairs")

    def __init__(self, is_known: Callable[[str, str], bool], most: int = MOST) -> None:
        """Start with none.

        Args:
            is_known: whether a name of an app and one of a job are those of an installed app.
            most: how many pairs have labels of their own.
        """
        self._is_known: Final = is_known
        self._most: Final = most
        self._lock: Final = Lock()
        self._pairs: Final[set[Pair]] = set()

    def of(self, app: str, job: str) -> Pair:
        """Return the labels for an app's job: its names, UNKNOWN or OTHER."""
        pair = (app, job)
        if pair in self._pairs:
            return pair
        if not self._is_known(app, job):
            return UNKNOWN
        with self._lock:
            if pair not in self._pairs and len(self._pairs) >= self._most:
                return OTHER
            self._pairs.add(pair)
        return pair
