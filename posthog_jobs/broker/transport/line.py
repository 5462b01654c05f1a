"""A connection for commands: one at a time, and kept between them."""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from posthog_jobs.broker.transport.refusals import RefusedError

if TYPE_CHECKING:
    from redis import ConnectionPool

#: Seconds of rest after which a connection is looked at before it is used again.
REST: Final = 1.0


class Line:
    """Sends commands over one connection of a pool, with no keys prefixed.

    A client takes a connection from its pool for each command and gives it back, with a lock and
    a system call each time; publishing and fetching spend a tenth of their time on that.

    Args:
        pool: where the connection comes from; closing the pool closes it.

    Attributes:
        unanswered: whether the last command was sent and its reply was lost.
    """

    __slots__ = ("_connection", "_lock", "_pid", "_used", "pool", "unanswered")

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self._connection: Any = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._used = 0.0
        self.unanswered = False

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
        if connection is None or self._pid != os.getpid():
            self._pid = os.getpid()
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
