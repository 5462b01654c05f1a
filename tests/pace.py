"""How late this machine is by itself, which is no fault of what is tested on it."""

from __future__ import annotations

import threading
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

#: Seconds that a look rests, and works, as a worker does that is called to a job.
_REST, _WORK = 0.05, 0.005
#: How often one job may have to wait for its turn on a processor: worker, pool, server and test.
_TURNS = 10


class Pace:
    """Tells, in a `with`, how long one who had rested or worked was kept from going on."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._worst = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def allow(self, seconds: float) -> float:
        """Return what takes less than so many seconds elsewhere may take here."""
        return seconds + _TURNS * max(self._worst, self._held_up())

    def _look(self) -> None:
        while not self._over.is_set():
            self._began = monotonic()
            self._over.wait(_REST)
            until = thread_time() + _WORK
            while thread_time() < until:
                pass
            self._worst = max(self._worst, self._held_up())

    def _held_up(self) -> float:
        return monotonic() - self._began - _REST - _WORK

    def __enter__(self) -> Self:
        self._began = monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
