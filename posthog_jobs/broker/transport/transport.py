"""The transport classes that kombu's aliases point at, and a client of the server behind one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import KombuError
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from posthog_jobs.broker.redis import Keys, RedisServer
from posthog_jobs.broker.transport import OPTION, WRITES
from posthog_jobs.broker.transport.channel import Channel, SentinelChannel
from posthog_jobs.broker.transport.poller import Poller
from posthog_jobs.errors import UnsupportedByBrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

_NO_LIMIT: Final = 2**31

#: Seconds to connect, and for a reply; a call of a client takes milliseconds.
_TIMEOUT: Final = 5.0


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
        self.cycle = Poller()

    def establish_connection(self) -> Any:
        """Connect, as kombu does, by making a channel; also see that it is of use, if asked to."""
        connection = super().establish_connection()  # type: ignore[misc]
        if self.client.transport_options.get(WRITES):  # type: ignore[attr-defined]
            channel = self._avail_channels[-1]  # type: ignore[attr-defined]
            try:
                channel.check_writes()
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
