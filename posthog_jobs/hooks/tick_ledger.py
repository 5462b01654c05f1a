"""What all workers know of the ticks: which one ran last, and whose runs just now."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import LockError, RedisError

from posthog_jobs.broker.redis import reaching_broker, unavailable
from posthog_jobs.errors import AppBusyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from redis.lock import Lock

    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.hooks.ticks import Tick

logger = logging.getLogger(__name__)

#: Seconds after which a lock whose worker died is free.
LOCK: Final = 30.0

#: How long a claim is kept after its tick was due: clocks that differ see it as sent.
_CLAIM_KEPT: Final = timedelta(minutes=1)


class TickLedger:
    """The ticks on one broker. Methods raise BrokerUnavailableError when it does not answer.

    Args:
        client: a Redis client for the broker's database; its replies must be bytes.
        keys: the key names.
    """

    __slots__ = ("_client", "_keys")

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client: Final[Any] = client
        self._keys: Final = keys

    @reaching_broker
    def now(self) -> datetime:
        """The time by the broker's clock, which decides when a tick is due."""
        seconds, micros = self._client.time()
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)

    @reaching_broker
    def last(self, app_id: str, hook: str) -> datetime | None:
        """The boundary of the tick that ended last, if any did."""
        seconds = self._client.hget(self._keys.ticks(app_id), hook)
        return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)

    def has_ended(self, tick: Tick) -> bool:
        """Tell whether the tick, or a later one, has run."""
        last = self.last(tick.app_id, tick.hook)
        return last is not None and last >= tick.boundary

    @reaching_broker
    def end(self, tick: Tick) -> None:
        """Note that a tick has run, so that it does not run again."""
        seconds = int(tick.boundary.timestamp())
        self._client.hset(self._keys.ticks(tick.app_id), tick.hook, seconds)

    @reaching_broker
    def claim(self, tick: Tick, now: datetime) -> bool:
        """Claim to send a tick; return whether nobody did before.

        Args:
            tick: the tick, which is due later.
            now: the time by this clock.
        """
        kept = tick.boundary - now + _CLAIM_KEPT
        return bool(self._client.set(self._claim(tick), 1, nx=True, px=kept))

    @reaching_broker
    def disclaim(self, tick: Tick) -> None:
        """Let somebody else send a tick, which could not be sent."""
        self._client.delete(self._claim(tick))

    @reaching_broker
    def forget(self, app_id: str) -> None:
        """Forget which ticks of an installation ran, so that none counts as missed."""
        self._client.delete(self._keys.ticks(app_id))

    def _claim(self, tick: Tick) -> str:
        return self._keys.tick_claim(tick.app_id, tick.hook, int(tick.boundary.timestamp()))

    @contextmanager
    def lock(self, tick: Tick) -> Iterator[None]:
        """Hold the lock of a tick's installation, renewed until the end.

        Raises:
            AppBusyError: it is not free.
        """
        name = self._keys.tick_lock(tick.app_id)
        lock = self._client.lock(name, timeout=LOCK, thread_local=False)
        with unavailable():
            is_free = lock.acquire(blocking=False)
        if not is_free:
            raise AppBusyError(
                f"another run_every_… of app id {tick.app_id!r} goes on, or its worker died "
                f"within the last {LOCK:g} s"
            )
        over = threading.Event()
        renewing = threading.Thread(
            target=_renew, args=(lock, over, name), name="posthog_jobs.tick", daemon=True
        )
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            try:
                lock.release()
            except (LockError, RedisError) as error:
                logger.warning("%s is free within %g s: %s", name, LOCK, error)


def _renew(lock: Lock, over: threading.Event, name: str) -> None:
    while not over.wait(LOCK / 3):
        try:
            lock.reacquire()
        except LockError as error:
            logger.warning(
                "%s was lost, so that the hook may run elsewhere too: %s. Was this process "
                "stopped, or cut off from Redis?",
                name,
                error,
            )
            return
        except RedisError as error:
            logger.warning("%s was not renewed, which is tried again: %s", name, error)
