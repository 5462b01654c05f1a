"""A connection to Redis for commands, and what a server that answers refuses for now."""

from __future__ import annotations

import re
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    RedisError,
    ResponseError,
)

from posthog_jobs.jobs.execution import after_fork

if TYPE_CHECKING:
    from redis import ConnectionPool

#: Seconds of rest after which a connection is looked at before it is used again.
REST: Final = 1.0
#: A code of Redis' that begins an error: of a command, of a transaction that was given up for it,
#: or, up to Redis 6, of a call in a script.
_REFUSAL: Final = re.compile(
    r"(?:^|because of: |: -)(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY"
    r"|TRYAGAIN|UNBLOCKED) .*"
)
#: What Redis says of where in a script it was.
_WHERE: Final = re.compile(r",? script: \w+, on @user_script:\d+\.?$")


class Connection:
    """Sends commands over one connection of a pool, with no keys prefixed.

    A client takes a connection from its pool for each command and gives it back, with a lock and
    a system call each time; publishing and fetching spend a tenth of their time on that.

    Args:
        pool: where the connection comes from; closing the pool closes it.

    Attributes:
        unanswered: whether the last command was sent and its reply was lost.
    """

    __slots__ = ("__weakref__", "_connection", "_lock", "_used", "pool", "unanswered")

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self._connection: Any = None
        self._lock = threading.Lock()
        self._used = 0.0
        self.unanswered = False
        after_fork(self._forget_parent)

    def execute_command(self, *command: Any) -> Any:
        """Send a command and return its reply, as bytes."""
        with self._lock:
            self.unanswered = False
            connection = self._ready()
            try:
                connection.send_command(*command)
                self.unanswered = True
                reply = connection.read_response()
            except ResponseError:  # an answer, too: the connection is whole
                self.unanswered = False
                raise
            except BaseException as error:  # a reply may still be under way
                self.unanswered = self.unanswered and not isinstance(error, RefusedError)
                connection.disconnect()
                raise
            self._used, self.unanswered = monotonic(), False
            return reply

    def _ready(self) -> Any:
        connection = self._connection
        if connection is None:
            connection = self._connection = self.pool.get_connection()
        elif monotonic() - self._used > REST:
            if getattr(connection, "_re_auth_token", None) is not None:
                connection.re_auth()
            try:
                stale = connection.can_read(timeout=0)
            except (RedisError, OSError):
                stale = True
            if stale:  # closed by the server, or with a reply that nobody waits for
                connection.disconnect()
        return connection

    def _forget_parent(self) -> None:
        # a fork must not speak on its parent's connection, and the lock may have been held
        self._lock, self._connection = threading.Lock(), None


class RefusedError(ConnectionError):
    """The server is full, busy, read-only or the like, and refuses until that is over.

    A connection's error: whoever waits for a server that is away waits for this one as well, and
    connects anew, for another server may have taken over.
    """


def refusal_of(error: Exception) -> str | None:
    """Return what an error of Redis says if it is a refusal for now; None for any other one."""
    code = getattr(error, "status_code", None)  # which redis-py cuts off the text
    text = f"{code} {error}" if code else str(error)
    return _WHERE.sub("", text).rstrip(".") if _REFUSAL.search(text) else None


def tell_refusals(pool: ConnectionPool) -> None:
    """Have each connection of a pool raise RefusedError where the server refuses for now."""

    class Telling(pool.connection_class):  # type: ignore[name-defined]
        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().read_response(*args, **kwargs)
            except (ResponseError, BusyLoadingError) as error:
                if (refusal := refusal_of(error)) is not None:
                    raise RefusedError(f"it refuses for now: {refusal}") from None
                raise

    pool.connection_class = Telling
