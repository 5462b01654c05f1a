"""A Redis server: its keys, the client of a process, and one error for a server that is away.

An app id has no colon, so that no key of one installation can be spelt as another's.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from redis.exceptions import DataError, LockError, NoPermissionError, RedisError, ResponseError

from posthog_jobs.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    StoreUnavailableError,
    StoreValueError,
    UnsupportedByBrokerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis
    from redis.lock import Lock

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What every key of ours begins with, behind kombu's `global_keyprefix`.
PREFIX = "posthog_jobs:"

#: The field of `Keys.apps` that is no app id; `lua/turn.lua` reads it.
APPS_VERSION = ":version"


class Keys:
    """Key names under one prefix.

    Args:
        global_keyprefix: kombu's transport option of that name.
    """

    def __init__(self, global_keyprefix: str = "") -> None:
        self.global_keyprefix: Final = global_keyprefix
        #: What the scripts derive the other names from.
        self.prefix: Final = f"{global_keyprefix}{PREFIX}"
        #: Sorted set of stock kombu: delivery tag → when (s) a stock worker got the message.
        self.unacked_index: Final = f"{global_keyprefix}unacked_index"
        #: Hash: app id → record of what is installed, and `APPS_VERSION` → the newest of theirs.
        self.apps: Final = f"{self.prefix}apps"
        #: Sorted set: partition (app and job) → due time, in ms, of the first that waits there.
        self.heads: Final = f"{self.prefix}heads"
        #: Hash: id → record of what waits.
        self.waiting: Final = f"{self.prefix}waiting"
        #: Hash: partition and key → id that waits under it.
        self.keyed: Final = f"{self.prefix}keyed"
        #: Sorted set: owner of a lease → when it ends, in ms.
        self.leases: Final = f"{self.prefix}leases"
        #: KEYS[1-5] of every script but `enqueue.lua`, see `lua/schedule_lib.lua`.
        self.fixed: Final = (
            self.heads, self.waiting, self.keyed, f"{self.prefix}promoted", self.leases
        )  # fmt: skip
        #: Hash: id → why, and with what details, a job failed.
        self.failed: Final = f"{self.prefix}failed"
        #: Hash: id → queue and message of a failed job.
        self.failed_messages: Final = f"{self.prefix}failed_messages"
        #: Sorted set: id → when a job failed, in ms.
        self.failed_at: Final = f"{self.prefix}failed_at"
        #: Set of the partitions (app, job, reason and state) that failed jobs are in.
        self.failed_parts: Final = f"{self.prefix}failed_parts"
        #: How many failed jobs were let go, by age or because there were too many.
        self.failed_dropped: Final = f"{self.prefix}failed_dropped"
        #: KEYS[6-10] of the scripts about failed jobs, see `lua/failed_lib.lua`.
        self.failures: Final = (
            self.failed, self.failed_messages, self.failed_at, self.failed_parts,
            self.failed_dropped,
        )  # fmt: skip

    def failed_part(self, partition: str) -> str:
        """Sorted set: id → when it failed, in ms, of the failed jobs of a partition."""
        return f"{self.prefix}failed:{partition}"

    def replay_lock(self, task_id: str) -> str:
        """Token of who sends a failed job again, by another broker; expires."""
        return f"{self.prefix}replay:{task_id}"

    def deliveries(self, task_id: str) -> str:
        """How often a job was started that had been delivered before."""
        return f"{self.prefix}deliveries:{task_id}"

    def sent(self, name: str, queue: str) -> str:
        """Token of the message for a queue that was taken under a name, and what became of it.

        For a minute. Each message has its name for itself while it is being sent.
        """
        return f"{self.prefix}sent:{name}:{queue}"

    def due(self, partition: str) -> str:
        """Sorted set: id → due time, in ms, of what waits in a partition."""
        return f"{self.prefix}due:{partition}"

    def inflight(self, owner: str) -> str:
        """Hash: tag → queue and message of what a lease holds."""
        return f"{self.prefix}inflight:{owner}"

    def queue(self, queue: str) -> str:
        """The list of kombu for a queue and priority."""
        return f"{self.global_keyprefix}{queue}"

    def wake(self, queue: str | None = None) -> str:
        """List that sleeping workers wait on: of a queue and priority, or of the schedule."""
        return f"{self.prefix}wake" if queue is None else f"{self.prefix}wake:{self.queue(queue)}"

    def export(self, app_id: str) -> tuple[str, str]:
        """The buffer of what an installation exports: list of events, and hash of its state."""
        return f"{self.prefix}export:{app_id}", f"{self.prefix}export_state:{app_id}"

    def cache(self, app_id: str, key: str) -> str:
        """One value or list of an installation's `meta.cache`."""
        return f"{self.prefix}cache:{app_id}:{key}"

    def storage(self, app_id: str) -> str:
        """Hash: key → value of an installation's `meta.storage`."""
        return f"{self.prefix}storage:{app_id}"

    def metrics(self, app_id: str) -> str:
        """Hash: kind and name of a metric → value, of an installation's `meta.metrics`."""
        return f"{self.prefix}metrics:{app_id}"

    def ticks(self, app_id: str) -> str:
        """Hash: hook → boundary, in s, of the installation's tick that ended last."""
        return f"{self.prefix}ticks:{app_id}"

    def tick_claim(self, app_id: str, hook: str, seconds: int) -> str:
        """There while a tick, of a boundary in s, is under way on a broker that knows no keys."""
        return f"{self.prefix}tick_claim:{app_id}:{hook}:{seconds}"

    def tick_lock(self, app_id: str) -> str:
        """Token of who runs an installation's `run_every_…`; expires unless it is renewed."""
        return f"{self.prefix}tick:{app_id}"


#: What a client raises where the server does not answer, or does not do what it was asked.
UNREACHABLE: Final = (RedisError, OSError)
#: What a client raises where the server answers, and does not do what it was asked.
REFUSED: Final = ResponseError

#: How Redis' errors begin that mean: not this command for the value of this key.
_WRONG_KIND: Final = (
    "WRONGTYPE",
    "value is not an integer",
    "hash value is not",
    "increment or decrement",
    "increment would produce",
)


class RedisServer:
    """A Redis server, which is connected to at the first call; one client per process.

    Attributes:
        uri: where it is connected to, without the password: one of several URLs, if there are;
            empty before the first call.
    """

    __slots__ = ("_connect", "_connected", "uri")

    def __init__(self, connect: Callable[[], tuple[Redis, Keys]]) -> None:
        """Remember how to connect.

        Args:
            connect: makes a client, whose replies are bytes, and the names of the keys it uses.
                Raises UnsupportedByBrokerError where the server is not Redis, RedisError or
                OSError where it does not answer.
        """
        self._connect: Final = connect
        self._connected: tuple[Redis, Keys] | None = None
        self.uri = ""

    def connected(self) -> tuple[Redis, Keys]:
        """Return the client, connected or not, and the key names.

        Raises:
            UnsupportedByBrokerError: it is not Redis.
            redis.exceptions.RedisError, OSError: it does not answer.
        """
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

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
        except ResponseError as error:
            if str(error).startswith(_WRONG_KIND):
                raise StoreValueError(f"the key holds a value of another kind: {error}") from None
            raise StoreUnavailableError(f"Redis refused the call: {error}") from error
        except UNREACHABLE as error:
            raise StoreUnavailableError(f"Redis does not answer {what}: {error}") from error


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn what Redis' client raises into our own error.

    Raises:
        BrokerUnavailableError: the broker does not answer, or refuses the call.
        TypeError: an id is not text.
    """
    try:
        yield
    except DataError as error:
        raise TypeError(f"an id is a string: {error}") from None
    except UNREACHABLE as error:
        raise BrokerUnavailableError(
            f"the broker does not answer: {error}; see that it runs, and that broker_url is right"
        ) from error


#: Lets a method raise BrokerUnavailableError, as `unavailable` does.
reaching_broker: Final = unavailable()


def is_forbidden(refused: Exception) -> bool:
    """Tell whether the server refuses a command to this user, or to all of them."""
    return isinstance(refused, NoPermissionError) or str(refused).startswith("unknown command")


@contextmanager
def renewed_lock(client: Redis, name: str, seconds: float) -> Iterator[bool]:
    """Hold a lock, renewed on a thread until the end; gives whether it was free.

    Args:
        client: of the server.
        name: the lock's key.
        seconds: after which it is free if its process died.

    Raises:
        BrokerUnavailableError: the server does not answer, and the lock is not held.
    """
    lock = client.lock(name, timeout=seconds, thread_local=False)
    with unavailable():
        is_free = lock.acquire(blocking=False)
    if not is_free:
        yield False
        return
    over = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(lock, over, name, seconds), name="posthog_jobs.lock", daemon=True
    )
    renewing.start()
    try:
        yield True
    finally:
        over.set()
        renewing.join()
        try:
            lock.release()
        except (LockError, RedisError) as error:
            logger.warning("%s is free within %g s: %s", name, seconds, error)


def _renew(lock: Lock, over: threading.Event, name: str, seconds: float) -> None:
    while not over.wait(seconds / 3):
        try:
            lock.reacquire()
        except LockError as error:
            logger.warning(
                "%s was lost, so that what it is for may run elsewhere too: %s. Was this process "
                "stopped, or cut off from Redis?",
                name,
                error,
            )
            return
        except RedisError as error:
            logger.warning("%s was not renewed, which is tried again: %s", name, error)
