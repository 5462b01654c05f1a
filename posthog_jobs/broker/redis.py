"""A Redis server by its URL, as kombu reads it: one client per process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from kombu.exceptions import OperationalError
from redis import Redis, exceptions

from posthog_jobs.broker.keys import Keys
from posthog_jobs.errors import (
    ConfigurationError,
    StoreUnavailableError,
    StoreValueError,
    UnsupportedByBrokerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection


T = TypeVar("T")

_NO_LIMIT: Final = 2**31

_TIMEOUT: Final = 5.0  # seconds to connect, and for a reply; a call here takes milliseconds

#: How Redis' errors begin that mean: not this command for the value of this key.
_WRONG_KIND: Final = (
    "WRONGTYPE",
    "value is not an integer",
    "hash value is not",
    "increment or decrement",
    "increment would produce",
)


class RedisServer:
    """A Redis client that is made at the first call, and the names of the keys it uses."""

    __slots__ = ("_client", "_connect", "_keys")

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Remember how to connect.

        Args:
            connect: gives a kombu connection, which knows every form that a broker URL has.
        """
        self._connect = connect
        self._client: Redis | None = None
        self._keys = Keys()

    def connected(self) -> tuple[Redis, Keys]:
        """Return the client, connected or not, and the key names.

        Raises:
            UnsupportedByBrokerError: it is no Redis.
            redis.exceptions.RedisError, kombu.exceptions.KombuError, OSError: it does not answer.
        """
        if self._client is None:
            with self._connect() as connection:
                if connection.transport.driver_type != "redis":
                    raise UnsupportedByBrokerError(
                        f"the broker is {connection.transport.driver_name}, which cannot do this; "
                        "Redis can"
                    )
                # else kombu sleeps for 2 s before it tries once more, or the next of several URLs
                connection.ensure_connection(max_retries=1, interval_start=0)
                # kombu reads every form of URL, TLS, sentinels and ACL users; the pool is new
                channel = connection.channel()
                pool = channel._get_pool()  # noqa: SLF001
                # no job hangs with its server; what the operator set has precedence
                for timeout in ("socket_timeout", "socket_connect_timeout"):
                    if pool.connection_kwargs.get(timeout, _TIMEOUT) is None:
                        pool.connection_kwargs[timeout] = _TIMEOUT
                # kombu's limit of 10 is for its own channels: these are as many as threads call
                pool.max_connections = _NO_LIMIT
                self._keys = Keys(channel.global_keyprefix)
            self._client = Redis(connection_pool=pool)
        return self._client, self._keys

    def call(
        self, function: Callable[[Redis, Keys], T], what: str = "meta.cache and meta.storage"
    ) -> T:
        """Call a function with the client and the key names.

        Args:
            function: what to call.
            what: what needs Redis here, for messages.

        Raises:
            StoreUnavailableError: the server does not answer.
            StoreValueError: it does, but the key holds a value of another kind.
            ConfigurationError: the broker is not Redis, and no other Redis is configured.
        """
        try:
            return function(*self.connected())
        except UnsupportedByBrokerError as error:
            raise ConfigurationError(
                f"{what} need Redis, and {error}; set posthog_jobs_redis_url"
            ) from None
        except exceptions.ResponseError as error:
            if str(error).startswith(_WRONG_KIND):
                raise StoreValueError(f"the key holds a value of another kind: {error}") from None
            raise StoreUnavailableError(f"Redis refused the call: {error}") from error
        except (exceptions.RedisError, OperationalError, OSError) as error:
            raise StoreUnavailableError(f"Redis does not answer {what}: {error}") from error
