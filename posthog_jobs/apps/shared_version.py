"""The newest version of the installations that a worker has seen, known to all its processes."""

from __future__ import annotations

import mmap
import threading
from typing import Final

_UNKNOWN: Final = -1


class SharedVersion:
    """A number in memory that a worker's parent shares with the children that it forks.

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
