"""`run_every_minute`, `run_every_hour` and `run_every_day`: when they run, and how one does.

A tick waits in the schedule, under a key, so that one runs however many workers there are; each one
sees to the next before it runs. RabbitMQ knows no keys: there a claim on Redis stands for it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID, uuid5

from posthog_jobs import errors
from posthog_jobs.broker.redis import reaching_broker, renewed_lock, unavailable
from posthog_jobs.jobs.retry import NEVER, ON_TICK_RETRY, UNTIL_FREE, delay_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from posthog_jobs.apps.installation import Installations
    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.broker.schedule import Schedule
    from posthog_jobs.jobs.retry import Policy

logger = logging.getLogger(__name__)

#: Hook → how long it is from one tick to the next.
PERIODS: Final[Mapping[str, timedelta]] = MappingProxyType(
    {
        "run_every_minute": timedelta(minutes=1),
        "run_every_hour": timedelta(hours=1),
        "run_every_day": timedelta(days=1),
    }
)

#: The key that a tick waits under.
KEY: Final = "tick"

#: Seconds after which the lock of a tick whose worker died is free.
LOCK: Final = 30.0

#: How long a claim is kept after its tick was due: clocks that differ see it as sent.
_CLAIM_KEPT: Final = timedelta(minutes=1)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMESPACE: Final = UUID("0c3bb7a4-2f0e-5d0c-9d0e-7a0f5f6f2b11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One run of a hook that is due.

    Attributes:
        app_id: the installation.
        hook: Python's name of the hook.
        boundary: the minute, hour or day that it stands for, by its start.
    """

    app_id: str
    hook: str
    boundary: datetime

    @property
    def id(self) -> str:
        """The task id: the same whoever schedules the tick, so that it waits once."""
        return str(uuid5(_NAMESPACE, f"{self.app_id} {self.hook} {self.boundary.isoformat()}"))

    @property
    def place(self) -> tuple[str, str, int]:
        """App id, hook, and boundary in seconds since the epoch."""
        return self.app_id, self.hook, int(self.boundary.timestamp())

    @property
    def task(self) -> str:
        """The name of the hook's task."""
        return task_of(self.hook)

    @property
    def is_made_up(self) -> bool:
        """Whether it runs later where it could not run in time."""
        return self.hook != "run_every_minute"


def task_of(hook: str) -> str:
    """Return the name of a hook's task."""
    return f"posthog_jobs.{hook}"


def boundary_before(hook: str, moment: datetime) -> datetime:
    """Return the last boundary of a hook that is not after an aware moment."""
    return moment.astimezone(UTC) - (moment - _EPOCH) % PERIODS[hook]


def boundary_after(hook: str, moment: datetime) -> datetime:
    """Return the first boundary of a hook that is after an aware moment."""
    return boundary_before(hook, moment) + PERIODS[hook]


class Ledger:
    """What all workers know of the ticks: which one ran last, and whose runs just now.

    Methods raise BrokerUnavailableError when the server does not answer, and
    UnsupportedByBrokerError when there is no Redis.

    Args:
        server: the broker, by whose clock ticks are due, or the Redis beside it.
    """

    __slots__ = ("_server",)

    def __init__(self, server: RedisServer) -> None:
        self._server: Final = server

    @reaching_broker
    def now(self) -> datetime:
        """The time by the server's clock, which decides when a tick is due."""
        seconds, micros = self._server.connected()[0].time()
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)

    @reaching_broker
    def last(self, app_id: str, hook: str) -> datetime | None:
        """The boundary of the tick that ended last, if any did."""
        client, keys = self._server.connected()
        seconds = client.hget(keys.ticks(app_id), hook)
        return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)

    def has_ended(self, tick: Tick) -> bool:
        """Tell whether the tick, or a later one, has run."""
        last = self.last(tick.app_id, tick.hook)
        return last is not None and last >= tick.boundary

    @reaching_broker
    def end(self, tick: Tick) -> None:
        """Note that a tick has run, so that it does not run again."""
        client, keys = self._server.connected()
        client.hset(keys.ticks(tick.app_id), tick.hook, str(int(tick.boundary.timestamp())))

    @reaching_broker
    def claim(self, tick: Tick, now: datetime) -> bool:
        """Claim to send a tick that is due later; return whether nobody did before."""
        kept = tick.boundary - now + _CLAIM_KEPT
        client, keys = self._server.connected()
        return bool(client.set(keys.tick_claim(*tick.place), 1, nx=True, px=kept))

    @reaching_broker
    def disclaim(self, tick: Tick) -> None:
        """Let somebody else send a tick, which could not be sent."""
        client, keys = self._server.connected()
        client.delete(keys.tick_claim(*tick.place))

    @reaching_broker
    def forget(self, app_id: str) -> None:
        """Forget which ticks of an installation ran, so that none counts as missed."""
        client, keys = self._server.connected()
        client.delete(keys.ticks(app_id))

    @contextmanager
    def lock(self, tick: Tick) -> Iterator[None]:
        """Hold the lock of a tick's installation, renewed until the end.

        Raises:
            AppBusyError: it is not free.
        """
        with unavailable():
            client, keys = self._server.connected()
        with renewed_lock(client, keys.tick_lock(tick.app_id), LOCK) as is_free:
            if not is_free:
                raise errors.AppBusyError(
                    f"another run_every_… of app id {tick.app_id!r} goes on, or its worker died "
                    f"within the last {LOCK:g} s"
                )
            yield


class Hooks(Protocol):
    """The installations of a process, and their hooks."""

    @property
    def installations(self) -> Installations:
        """Who is installed, as of now."""

    def hook(self, app_id: str, name: str) -> Callable[[], None] | None:
        """Return what runs a hook; None if the app has none of that name."""


class Ticks:
    """Schedules, runs and stops the ticks of the installed apps."""

    __slots__ = ("_hooks", "_schedule", "_send", "ledger")

    def __init__(
        self,
        hooks: Hooks,
        ledger: Ledger,
        schedule: Schedule | None,
        send: Callable[[Tick, str | None], bool],
    ) -> None:
        """Do nothing yet.

        Args:
            hooks: who is installed.
            ledger: what all workers know.
            schedule: what waits on the broker; None for RabbitMQ, which knows no keys.
            send: has a tick wait until it is due, with a key unless one waits under it already;
                returns whether it waits now, and none did before.
        """
        self._hooks: Final = hooks
        self._schedule: Final = schedule
        self._send: Final = send
        self.ledger: Final = ledger

    def see_to_all(self) -> None:
        """See to it that the next tick of each installed hook waits; one call of Redis if all do.

        An hour or a day that was missed, as when the worker that had its tick did not know the
        app, is made up at once.

        Raises:
            UnsupportedByBrokerError: an installed app has such a hook, and there is no Redis.
            BrokerUnavailableError: it does not answer.
        """
        missing = [
            (installation.id, hook)
            for installation in self._hooks.installations
            for hook in PERIODS
            if hook in installation.definition.hooks
        ]
        if missing and self._schedule is not None:
            places = [(app_id, task_of(hook)) for app_id, hook in missing]
            waiting = self._schedule.under_key(KEY, places)
            missing = [pair for pair, each in zip(missing, waiting, strict=True) if each is None]
        for app_id, hook in missing:
            now, last = self.ledger.now(), self.ledger.last(app_id, hook)
            tick = Tick(app_id=app_id, hook=hook, boundary=boundary_before(hook, now))
            # to be sent only by the one who scheduled the next, since it has no key
            if (
                self._send_next(tick, now)
                and tick.is_made_up
                and last is not None
                and last < tick.boundary
            ):
                logger.warning("%s of app id %r missed %s", hook, app_id, tick.boundary)
                self._send(tick, None)

    def stop(self, app_id: str) -> None:
        """Cancel the ticks of an installation that was removed, and forget which ones ran.

        Raises:
            BrokerUnavailableError: Redis does not answer.
        """
        if self._schedule is not None:
            for hook in PERIODS:
                self._schedule.cancel_all(app_id=app_id, job=task_of(hook))
        with suppress(errors.UnsupportedByBrokerError):
            self.ledger.forget(app_id)

    def run(self, tick: Tick, due: float | None) -> None:
        """Schedule the next tick, and run the hook, unless it has run for this boundary.

        Args:
            tick: which one.
            due: when its message was due, in ms since the epoch, if that is known.

        Raises:
            Exception: what the hook raised, AppSetupError, or AppBusyError; see `policy`.
        """
        # an operator moved it to before its time, or sent it again: one run more
        is_extra = self._schedule is not None and (
            due is None or due < tick.boundary.timestamp() * 1000
        )
        ledger = self.ledger
        # RabbitMQ waits by another clock, by which the tick may be early: the next one is not it
        now = ledger.now() if is_extra else max(ledger.now(), tick.boundary)
        try:
            run = self._hooks.hook(tick.app_id, tick.hook)
        except errors.AppLoadError as error:
            logger.warning("%s of app id %r does not run: %s", tick.hook, tick.app_id, error)
            self._send_next(tick, now)
            return
        except errors.AppError as error:
            logger.info("%s of app id %r ends: %s", tick.hook, tick.app_id, error)
            if isinstance(error, errors.AppDisabledError | errors.AppRemovedError):
                ledger.forget(tick.app_id)  # what it does not run meanwhile is not made up
            return
        if run is None:
            return
        self._send_next(tick, now)
        with ledger.lock(tick):
            if not is_extra and ledger.has_ended(tick):
                logger.info("%s of app id %r has run already", tick.hook, tick.app_id)
                return
            run()
            if not is_extra:  # a late one makes up for all that were due when it began
                ledger.end(replace(tick, boundary=boundary_before(tick.hook, now)))

    def policy(
        self, tick: Tick, error: errors.AppError | errors.RetryError, attempt: int
    ) -> Policy | None:
        """Return how a tick that did not run to its end is run again.

        Args:
            tick: which one.
            error: why it did not.
            attempt: how often it was run again, or waited for another hook of its app, before.

        Returns:
            None for a tick that is left out: the next one is due before it would run again.
        """
        policy: Policy = ON_TICK_RETRY if tick.is_made_up else NEVER
        if isinstance(error, errors.AppBusyError):
            policy = UNTIL_FREE
        elif isinstance(error, errors.AppSetupError) and error.final:
            policy = NEVER
        delay = delay_after(error, policy, attempt)
        if delay is None:
            is_over = not isinstance(error, errors.RetryError)
        else:
            now = self.ledger.now()
            is_over = now + timedelta(seconds=delay) >= boundary_after(tick.hook, now)
        if is_over:
            logger.warning("%s of app id %r is left out: %s", tick.hook, tick.app_id, error)
            return None
        return policy

    def _send_next(self, tick: Tick, now: datetime) -> bool:
        """Have an installation's next tick wait; return whether none did."""
        tick = replace(tick, boundary=boundary_after(tick.hook, now))
        if self._schedule is not None:
            return self._send(tick, KEY)
        if not self.ledger.claim(tick, now):
            return False
        try:
            return self._send(tick, None)
        except BaseException:
            self.ledger.disclaim(tick)
            raise
