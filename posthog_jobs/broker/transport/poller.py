"""The poller: wakes a worker for a call, for the head of the schedule, or after a second."""

from __future__ import annotations

import select
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from kombu.transport import redis as kombu_redis

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.broker.transport.channel import DurableChannel

#: Seconds after which a sleeper looks at queues and schedule without having been called.
LONGEST_SLEEP: Final = 1.0


class Poller(kombu_redis.MultiChannelPoller):
    """kombu's poller, which both loops of Celery's worker use."""

    #: kombu's event loop, in pools that have one.
    loop: Any = None

    def __init__(self) -> None:
        super().__init__()
        self._timer: Any = None
        self._wake_at: float | None = None
        self._stock_restored_at = float("-inf")

    def run_ready(self) -> None:
        """Run what the event loop would run before it polls again, acknowledgements for one."""
        if self.loop is not None and self.loop._ready:
            for callback in self.loop._pop_ready():
                callback()

    def arm(self, at: float) -> None:
        """See to it that a turn is taken at `at`, in seconds of the monotonic clock."""
        delay = at - monotonic()
        if self.loop is None or delay > LONGEST_SLEEP + 0.1:
            return
        if self._timer is not None and not self._timer.cancelled:
            if self._wake_at is not None and self._wake_at <= at:
                return
            self._timer.cancel()
        self._wake_at = at
        self._timer = self.loop.call_later(max(0.0, delay), self._on_timer)

    def on_readable(self, fileno: int) -> Any:
        """Read control messages before jobs: one may revoke what was fetched while a job ran."""
        _, kind = self._fd_to_chan.get(fileno, (None, None))
        for channel, other in list(self._fd_to_chan.values()):
            if other == "LISTEN" and kind == "BRPOP":
                self._listen(channel)
        # what it has to say may have been read before the jobs, and reading on would block
        if kind != "LISTEN" or self._has_news(self._fd_to_chan[fileno][0]):
            return super().on_readable(fileno)
        return None

    def _listen(self, channel: DurableChannel) -> None:
        if self._has_news(channel):
            with suppress(Empty):
                channel.handlers["LISTEN"]()

    @staticmethod
    def _has_news(channel: DurableChannel) -> bool:
        # Asked before each turn: the client's own can_read() takes ten times as long. Nothing is
        # left in its buffer, for it is read until that is empty.
        sock = getattr(channel.subclient.connection, "_sock", None)
        if sock is None:
            return False
        if not hasattr(select, "poll"):  # which eventlet takes away
            return bool(select.select([sock], [], [], 0)[0])
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    def _on_timer(self) -> None:
        self._timer = self._wake_at = None
        self._take_due_turns()

    def _take_due_turns(self) -> None:
        now = monotonic()
        for channel in list(self._channels):
            at = channel._head_at
            if at is not None and at <= now:
                channel._head_at = None
                channel.on_due()
            elif at is not None and self.loop is not None:
                self.arm(at)

    def get(self, callback: Callable[..., Any], timeout: float | None = None) -> None:
        """Wait for one reply or the head of the schedule; without an event loop."""
        wait = LONGEST_SLEEP if timeout is None else min(timeout, LONGEST_SLEEP)
        for channel in self._channels:
            if channel._head_at is not None and channel.active_queues:
                wait = min(wait, channel._head_at - monotonic())
        try:
            super().get(callback, max(0.0, wait))
        finally:
            self._take_due_turns()

    def on_poll_init(self, poller: Any) -> None:
        """Take the event loop's poller; kombu also restores here, which a full server refuses."""
        self.poller = poller

    def maybe_restore_messages(self) -> None:
        """Restore what stock workers left; what ours left is restored by every turn."""
        for channel in self._channels:
            if channel.active_queues:
                now = monotonic()
                if now - self._stock_restored_at < channel.unacked_restore_interval:
                    return
                self._stock_restored_at = now
                try:
                    channel.qos.restore_visible(num=channel.unacked_restore_limit, interval=1)
                except channel.connection_errors:
                    kombu_redis.logger.debug("restore: will retry", exc_info=True)
                return
