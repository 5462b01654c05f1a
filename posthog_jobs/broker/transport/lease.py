"""A worker's lease on the messages it fetched, and the thread that keeps it.

A lease belongs to one channel of one process. It is renewed by a thread of its own, over a
connection of its own, so that neither a job that blocks the solo pool nor a busy event loop lets
it end; it ends when the process dies or is stopped for longer than the lease.
"""

from __future__ import annotations

import threading
from itertools import islice
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from kombu.log import get_logger

from posthog_jobs.broker import scripts
from posthog_jobs.broker.failures import FailureKeeper
from posthog_jobs.broker.redis import UNREACHABLE
from posthog_jobs.broker.transport.connection import Connection
from posthog_jobs.jobs.execution import after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from redis import ConnectionPool

    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.broker.redis import Keys

logger = get_logger("kombu.transport.redis")

#: Seconds that an acknowledgement waits for company before the thread sends it. What finished
#: within this time before a kill runs again.
ACK_DELAY: Final = 0.005
#: Most messages that one turn promotes or restores: well below 20 ms of the server's time.
PROMOTE: Final = 100
RESTORE: Final = 200
#: Seconds between two looks for failed jobs that are too old.
TRIM_EVERY: Final = 3600.0


class Lease:
    """Holds messages in flight until they are acknowledged, put back, or the process dies.

    Args:
        pool: connections of the lease's own.
        keys: the transport's key names.
        seconds: how long the messages of a dead worker stay with it.
        max_failures: how many failed jobs are kept on the broker.

    Attributes:
        on_apps_version: called with another version of the installed apps than before.
        on_promoted: called with how many messages a turn promoted, if it did.
        on_refused: called where a message that cannot even be read is kept as failed.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        keys: Keys,
        seconds: float,
        max_failures: int,
    ) -> None:
        self.owner = uuid4().hex[:12]
        self.seconds = seconds
        self.inflight = keys.inflight(self.owner)
        self.on_apps_version: Callable[[int], object] | None = None
        self._apps_version: int | None = None
        self.on_promoted: Callable[[int], object] | None = None
        self.on_refused: Callable[[], object] | None = None
        self._pool, self._commands, self._keys = pool, Connection(pool), keys
        self._is_parents = False
        after_fork(self._leave_to_parent)
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        # what one thread acknowledges just now must not be put back by another one
        self._acknowledging = threading.RLock()
        self._acks: list[str] = []
        self._ended: list[str] = []
        self._requeued: list[str] = []
        self._failures: dict[str, FailedJob] = {}
        self._keeper = FailureKeeper(keys, max_failures)
        self._trimmed = float("-inf")
        self._held: dict[str, None] = {}
        self._next = 1
        self._kept: set[str] | None = None  # a set once the channel is closed
        self._released = False
        self._renewed = monotonic()
        self._nudge = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"posthog-jobs-lease-{self.owner}", daemon=True
        )
        self._thread.start()

    # -- used by the channel ----------------------------------------------------------------

    def first_tag(self, room: int) -> int:
        """Set aside the tags of one fetch; a lost reply never has its tags used again."""
        first, self._next = self._next, self._next + room
        return first

    def hold(self, tags: Collection[str]) -> None:
        """Note what has been fetched."""
        with self._lock:
            self._held.update(dict.fromkeys(tags))

    def ack(self, tag: str) -> None:
        """Let a message go for good; from any thread. Sent with the next turn or within 5 ms."""
        with self._lock:
            self._acks.append(tag)
            self._held.pop(tag, None)
            if self._kept is not None:
                self._kept.discard(tag)
        if not self._nudge.is_set():
            self._nudge.set()

    def fail(self, tag: str, failure: FailedJob) -> None:
        """Let a message go to the failed jobs; from any thread. Sent within 5 ms."""
        with self._lock:
            self._failures[tag] = failure
        self._nudge.set()

    def refuse(self, tag: str, failure: FailedJob) -> None:
        """Let a message that cannot even be read go to the failed jobs, and tell of it."""
        self.fail(tag, failure)
        if self.on_refused is not None:
            self.on_refused()

    def requeue(self, tag: str) -> None:
        """Put a message at the back of its queue, once Redis is there; from any thread."""
        with self._lock:
            self._requeued.append(tag)
        self._nudge.set()

    def end_count(self, task_id: str) -> None:
        """Let go the count of how often a job was started; from any thread."""
        with self._lock:
            self._ended.append(self._keys.deliveries(task_id))
        self._nudge.set()

    def forget(self, tag: str) -> None:
        """Note that a message is not in flight any more, by a script of its own."""
        with self._lock:
            self._held.pop(tag, None)
            if self._kept is not None:
                self._kept.discard(tag)

    def take_acks(self) -> list[str]:
        """Hand over what is to be acknowledged, to be sent with a turn."""
        with self._lock:
            acks, self._acks = self._acks, []
        return acks

    def give_back(self, acks: list[str]) -> None:
        """Take back acknowledgements whose turn failed; sending them again does no harm."""
        with self._lock:
            self._acks[:0] = acks

    def turn_args(
        self, room: int, acks: list[str], *, group: int, fair: bool, holds: str
    ) -> list[Any]:
        """ARGV of `turn.lua`."""
        self._renewed = monotonic()
        return [
            self._keys.prefix,
            self.owner,
            int(self.seconds * 1000),
            room,
            self.first_tag(room),
            PROMOTE,
            RESTORE,
            group,
            "1" if fair else "0",
            holds,
            "1" if self._held else "0",
            *acks,
        ]

    def note(self, reply: list[Any]) -> None:
        """Look at what a turn says of the lease, the installed apps, and the schedule."""
        if self.on_apps_version is not None and reply[2] != self._apps_version:
            self._apps_version = reply[2]
            self.on_apps_version(reply[2])
        if reply[3] and self.on_promoted is not None:
            self.on_promoted(reply[3])
        if reply[1]:
            logger.warning(
                "The lease of %s s on fetched jobs ended before it was renewed, so they may run "
                "elsewhere too. Was this process stopped, or cut off from Redis? "
                "A longer broker_transport_options['visibility_timeout'] bridges longer gaps.",
                self.seconds,
            )

    def put_back(self, tags: Collection[str], *, front: bool) -> None:
        """Put messages back into their queues."""
        if not tags or self._is_parents:
            return
        for tag in tags:
            self.forget(tag)
        left = iter(tags)
        while some := list(islice(left, 500)):
            self._call_put_back("only", "front" if front else "back", "0", some)

    def recover(self) -> None:
        """Put back what a fetch recorded whose reply was lost with its connection."""
        with self._acknowledging:
            with self._lock:
                known = [*self._held, *self._acks]
            while self._call_put_back("all", "front", "0", known)[1]:
                pass

    def close(self, keep: Collection[str]) -> None:
        """Put back all but `keep`, which are still running and are acknowledged later.

        When Redis cannot be reached, the thread goes on trying.
        """
        if self._is_parents:
            return
        with self._lock:
            self._kept = self._held.keys() & keep  # some may have been acknowledged just now
        try:
            self._release()
        except UNREACHABLE as error:
            logger.info("Fetched jobs are put back when Redis is there again (%s)", error)
        self._nudge.set()

    # -- the thread -------------------------------------------------------------------------

    def _leave_to_parent(self) -> None:
        self._is_parents = True

    def _call_put_back(self, which: str, end: str, forget: str, tags: list[str]) -> list[int]:
        reply: list[int] = scripts.PUT_BACK(
            self._commands,
            [*self._keys.fixed, self.inflight],
            [self._keys.prefix, self.owner, which, end, forget, 500, *tags],
        )
        return reply

    def _release(self) -> None:
        with self._acknowledging:
            self._flush()
            with self._lock:
                kept = [*(self._kept or ()), *self._acks, *self._requeued, *self._failures]
            while self._call_put_back("all", "front", "1", kept)[1]:
                pass
        self._released = True
        self._settle()

    def _flush(self) -> None:
        with self._acknowledging:
            acks = self.take_acks()
            try:
                for first in range(0, len(acks), 1000):
                    self._commands.execute_command(
                        "HDEL", self.inflight, *acks[first : first + 1000]
                    )
            except BaseException:
                self.give_back(acks)
                raise

    def _settle(self) -> None:
        """Put back what was rejected, keep what failed, and let go the counts of what ended."""
        with self._settling:  # who closes the channel and the thread may both be at it
            if requeued := list(self._requeued):
                self.put_back(requeued, front=False)
                with self._lock:
                    del self._requeued[: len(requeued)]
            ended = self._ended[:1000]
            if ended:
                self._commands.execute_command("DEL", *ended)
                with self._lock:
                    del self._ended[: len(ended)]
            self._keep_failures()

    def _keep_failures(self) -> None:
        """Move what failed to the failed jobs, and let go what is too old or too much of those."""
        with self._lock:
            failures = dict(self._failures)
        for tag, is_kept in self._keeper.move(self._commands, self.inflight, failures):
            with self._lock:
                failure = self._failures.pop(tag)
            self.forget(tag)
            if not is_kept:
                logger.warning(
                    "%s[%s] failed here after its lease had ended; it runs elsewhere",
                    failure.job,
                    failure.id,
                )
        if monotonic() - self._trimmed > TRIM_EVERY and self._keeper.trim(self._commands):
            self._trimmed = monotonic()

    def _renew(self) -> None:
        with self._acknowledging:
            acks = self.take_acks()
            try:
                reply = scripts.TURN(
                    self._commands,
                    [*self._keys.fixed, self.inflight],
                    self.turn_args(0, acks, group=0, fair=False, holds=""),
                )
            except BaseException:
                self.give_back(acks)
                raise
        self.note(reply)

    def _run(self) -> None:
        renew_every = min(self.seconds / 4, 1.0)  # also promotes while the worker is busy
        while not self._done():
            try:
                if self._nudge.wait(max(0.01, self._renewed + renew_every - monotonic())):
                    self._nudge.clear()
                    sleep(ACK_DELAY)
                    if self._acks:
                        self._flush()
                if self._kept is not None and not self._released:
                    self._release()
                if monotonic() - self._renewed >= renew_every:
                    self._renew()
                # last: trouble with these must not let the lease end
                self._settle()
            except UNREACHABLE:
                logger.debug("lease %s: will retry", self.owner, exc_info=True)
                sleep(min(renew_every, 0.5))
                self._nudge.set()
        self._pool.disconnect()

    def _done(self) -> bool:
        if self._kept is None or not self._released or self._kept or self._acks:
            return False
        if self._failures or self._ended or self._requeued:
            return False
        try:
            self._commands.execute_command("ZREM", self._keys.leases, self.owner)
        except UNREACHABLE:
            logger.debug("lease %s ends by itself", self.owner, exc_info=True)
        return True
