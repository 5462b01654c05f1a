"""The transport classes that kombu's aliases point at, and a client of the server behind one.

A transport's poller wakes a worker for a call, for the head of the schedule, or after a second.
"""

from __future__ import annotations

import select
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import KombuError
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from posthog_jobs.broker.redis import Keys, RedisServer
from posthog_jobs.broker.transport import OPTION, WRITES
from posthog_jobs.broker.transport.channel import DurableChannel
from posthog_jobs.errors import UnsupportedByBrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

#: Seconds after which a sleeper looks at queues and schedule without having been called.
LONGEST_SLEEP: Final = 1.0

_NO_LIMIT: Final = 2**31

#: Seconds to connect, and for a reply; a call of a client takes milliseconds.
_TIMEOUT: Final = 5.0


class _Poller(kombu_redis.MultiChannelPoller):
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


class _Durable:
    """What our transports do differently; goes in front of one of kombu's.

    The alias of a URL scheme holds for the whole process, so making one of these for a connection
    without our option makes kombu's own transport instead: other Celery apps notice nothing.
    """

    stock: type[Any]
    #: The same as kombu's default, which it takes for a reason to try a second time at most.
    recoverable_connection_errors = (
        *kombu_redis.Transport.connection_errors,
        *kombu_redis.Transport.channel_errors,
    )
    recoverable_channel_errors = ()

    def __new__(cls, client: Any, **kwargs: Any) -> Any:
        """Make ours or kombu's, as the connection's transport options say."""
        if client.transport_options.get(OPTION):
            return super().__new__(cls)
        return cls.stock(client, **kwargs)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)  # type: ignore[call-arg]
        self.cycle = _Poller()

    def establish_connection(self) -> Any:
        """Connect, as kombu does, by making a channel; also see that it is of use, if asked to."""
        connection = super().establish_connection()  # type: ignore[misc]
        if self.client.transport_options.get(WRITES):  # type: ignore[attr-defined]
            channel = self._avail_channels[-1]  # type: ignore[attr-defined]
            try:
                # one that is full takes this, for workers free its memory
                channel.commands.execute_command("ZREM", channel.keys.leases, "")
            except BaseException:
                self._avail_channels.remove(channel)  # type: ignore[attr-defined]
                channel.close()
                raise
        return connection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop poll, as kombu does, but register a socket with it only once."""
        cycle = connection.cycle
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]
        for callback in set(loop.on_tick) - before:
            loop.on_tick.discard(callback)
        cycle.loop = loop

        on_readable = self.on_readable  # type: ignore[attr-defined]

        def on_poll_start() -> None:
            cycle.on_poll_start()
            for fd in cycle.fds:
                # a number that a closed connection leaves may have been somebody else's since
                if fd not in loop.readers or loop.readers[fd][0] != on_readable:
                    loop.add_reader(fd, on_readable, fd)

        loop.on_tick.add(on_poll_start)


#: Transport options that ours have and kombu's have not.
_OPTIONS: Final = ("stock_visibility_timeout", "max_failures")


class Channel(DurableChannel, kombu_redis.Channel):
    """Channel to one Redis server."""

    from_transport_options = (*kombu_redis.Channel.from_transport_options, *_OPTIONS)


class SentinelChannel(DurableChannel, kombu_redis.SentinelChannel):
    """Channel to the server that Sentinel names."""

    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, *_OPTIONS)


class Transport(_Durable, kombu_redis.Transport):
    """Redis, with a durable schedule."""

    Channel = Channel
    stock = kombu_redis.Transport


class SentinelTransport(_Durable, kombu_redis.SentinelTransport):
    """Redis behind Sentinel, with a durable schedule."""

    Channel = SentinelChannel
    stock = kombu_redis.SentinelTransport


def redis_server(connection: Callable[[], Connection]) -> RedisServer:
    """Return the server of a kombu connection, which knows every form that a broker URL has.

    Args:
        connection: makes the connection, when the server is first needed.
    """

    def connect() -> tuple[Redis, Keys]:
        with connection() as link:
            if link.transport.driver_type != "redis":
                raise UnsupportedByBrokerError(
                    f"the broker is {link.transport.driver_name}, which cannot do this; Redis can"
                )
            try:
                # else kombu sleeps for 2 s before it tries once more, or the next of several URLs
                link.ensure_connection(max_retries=max(1, len(link.alt)), interval_start=0)
                server.uri = link.as_uri()
                # kombu reads every form of URL, TLS, sentinels and ACL users; the pool is new
                channel = link.channel()
                pool = channel._get_pool()
            except KombuError as error:
                raise RedisConnectionError(str(error)) from error
            # no job hangs with its server; what the operator set has precedence
            for timeout in ("socket_timeout", "socket_connect_timeout"):
                if pool.connection_kwargs.get(timeout, _TIMEOUT) is None:
                    pool.connection_kwargs[timeout] = _TIMEOUT
            # kombu's limit of 10 is for its own channels: these are as many as threads call
            pool.max_connections = _NO_LIMIT
            return Redis(connection_pool=pool), Keys(channel.global_keyprefix)

    server = RedisServer(connect)
    return server
