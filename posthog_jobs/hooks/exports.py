"""Brings processed events to `export_events`: into a buffer, out of it, and in batches to it.

The buffers are lists on Redis, one for each installation, and outlive every worker.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar
from uuid import uuid4

from posthog_jobs.apps.export_options import ExportOptions
from posthog_jobs.broker.scripts import BUFFER_EXPORT, TAKE_EXPORT
from posthog_jobs.errors import ConfigurationError, RetryError, StoreUnavailableError
from posthog_jobs.hooks.events import is_snapshot
from posthog_jobs.jobs.execution import in_worker
from posthog_jobs.jobs.payload import dumps, loads
from posthog_jobs.jobs.retry import ON_EXPORT_RETRY, delay_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.broker.redis import Keys, RedisServer
    from posthog_jobs.hooks.events import Event

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What needs Redis here, for messages.
_WHAT: Final = "the buffers of export_events"

#: Seconds that a process that stops spends on exporting; what is left waits for another worker.
PATIENCE: Final = 5.0
#: Seconds between two looks at a buffer that another process exports from at that moment.
LOOK: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Events that left a buffer together.

    Attributes:
        id: the task id under which they are exported, also if they have to be sent twice.
        events: in the order in which they came.
    """

    id: str
    events: list[Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flush:
    """When a buffer has to be looked at.

    Attributes:
        app_id: whose it is.
        due: the moment, as the buffer knows it.
        delay: seconds from now until then.
    """

    app_id: str
    due: str
    delay: float


class ExportSender(Protocol):
    """What brings batches, and calls to look for them, to the broker."""

    def flush_export(self, app_id: str, delay: float) -> None:
        """Have a worker flush a buffer after so many seconds, and not at the time before."""

    def export_events(
        self, app_id: str, events: list[Event], task_id: str, *, delay: float = 0, retries: int = 0
    ) -> None:
        """Have a worker export a batch, which has been tried so many times."""


class Exporter:
    """The exports of a process. An event is in the buffer, in a message, or exported."""

    __slots__ = ("_filled", "_is_buffering", "_options", "_sender", "_server")

    def __init__(self, sender: ExportSender, server: RedisServer) -> None:
        self._sender: Final = sender
        self._server: Final = server
        self._options: Final[dict[str, tuple[int, ExportOptions]]] = {}
        self._filled: dict[str, Installation] = {}
        self._is_buffering = True

    def add(self, event: Event, installations: Iterable[Installation]) -> None:
        """Put a processed event into the buffers of those installations that export it.

        Where Redis does not take it, it is sent as a batch of its own.

        Raises:
            BrokerUnavailableError: the broker does not take it either, or no call to flush.
        """
        if is_snapshot(event):
            return
        exporting = {
            installation.id: installation
            for installation in installations
            if "export_events" in installation.definition.hooks
            and event["event"] not in self._options_of(installation).ignored
        }
        if not exporting:
            return
        options = {app_id: self._options_of(each) for app_id, each in exporting.items()}
        try:
            flushes = self._append(dumps(event), options)
        except (StoreUnavailableError, ConfigurationError) as error:
            if self._is_buffering:
                logger.warning("events are exported one by one, without a buffer: %s", error)
            self._is_buffering = False
            for app_id in exporting:
                self._sender.export_events(app_id, [event], str(uuid4()))
            return
        self._is_buffering = True
        self._filled.update(exporting)
        self._send(flushes)

    def look(self, installations: Iterable[Installation]) -> None:
        """Send the flush of each buffer whose own was lost.

        Raises:
            StoreUnavailableError, BrokerUnavailableError: not now.
            ConfigurationError: something is exported, and without Redis there are no buffers.
        """
        options = {
            installation.id: self._options_of(installation)
            for installation in installations
            if "export_events" in installation.definition.hooks
        }
        if options:
            self._send(self._append("", options))

    def flush(self, app_id: str, installation: Installation | None, owner: str) -> None:
        """Send what is full or due in an installation's buffer, and see to the rest.

        Args:
            app_id: the installation's id.
            installation: the installation, or None if it is not there now: its batches are sent
                all the same, and kept where jobs of such apps are.
            owner: the id of this attempt; the same one when it is made again.

        Raises:
            StoreUnavailableError, BrokerUnavailableError: not now; nothing is lost.
        """
        options = ExportOptions() if installation is None else self._options_of(installation)
        done = ""
        while True:
            taken = self._take(app_id, options, "due", owner, done)
            if not isinstance(taken, _Batch):
                break
            self._sender.export_events(app_id, taken.events, taken.id)
            done = taken.id
        if taken is not None:
            self._send([taken])

    def drop(self, app_id: str) -> None:
        """Delete what an installation's buffer holds."""
        with suppress(ConfigurationError):  # without Redis there are no buffers
            self._call(lambda redis, keys: redis.unlink(*keys.export(app_id)))

    def drain(
        self,
        installation: Installation,
        batch: Callable[[str, list[Event]], Callable[[], object]],
        until: float | None = None,
    ) -> None:
        """Export all that is in an installation's buffer here and now, before its teardown.

        A batch that fails is sent, so that a worker tries it again.

        Args:
            installation: the installation.
            batch: gives what calls its hook on a batch.
            until: when no other batch is begun, in seconds of the monotonic clock; without it
                after `PATIENCE` seconds.
        """
        app_id, owner, done = installation.id, str(uuid4()), ""
        options = self._options_of(installation)
        if until is None:
            until = monotonic() + PATIENCE
        while True:
            in_time = monotonic() < until
            what: Literal["all", "none"] = "all" if in_time else "none"
            taken = self._take(app_id, options, what, owner, done)
            if taken is None:
                return
            if isinstance(taken, _Flush):
                if not in_time:
                    self._send([taken])
                    return
                sleep(LOOK)
                continue
            try:
                batch(app_id, taken.events)()
            except Exception as error:
                logger.exception("export_events of app id %r failed while it was ended", app_id)
                retried = isinstance(error, RetryError)
                delay = delay_after(error, ON_EXPORT_RETRY, 0) if retried else 0
                self._sender.export_events(
                    app_id, taken.events, taken.id, delay=delay or 0, retries=int(retried)
                )
            done = taken.id

    def drain_all(self, batch: Callable[[str, list[Event]], Callable[[], object]]) -> None:
        """Drain the buffers that this process has filled, at once, for `PATIENCE` seconds at most.

        What is not exported by then stays in its buffer, for another worker, or the next one.
        """
        filled, self._filled = self._filled, {}
        until = monotonic() + PATIENCE

        def drain(installation: Installation) -> None:
            in_worker.set(True)  # an app that exits must not end the process
            try:
                self.drain(installation, batch, until)
            except Exception:
                logger.exception("events of app id %r stay in their buffer", installation.id)

        threads = [
            threading.Thread(target=drain, args=(installation,), daemon=True)
            for installation in filled.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, until - monotonic()))

    def _send(self, flushes: Iterable[_Flush]) -> None:
        for flush in flushes:
            self._sender.flush_export(flush.app_id, flush.delay)
            with suppress(StoreUnavailableError):  # then the next event sends one more
                self._note(flush)

    def _note(self, flush: _Flush) -> None:
        """Note that a flush is on its way, so that nobody else sends it."""
        self._call(lambda redis, keys: redis.hset(keys.export(flush.app_id)[1], "armed", flush.due))

    def _append(self, event: str, options: Mapping[str, ExportOptions]) -> list[_Flush]:
        """Append an event to the buffers of installations.

        Args:
            event: as JSON; "" appends nothing.
            options: app id → the options of an installation that exports it.

        Returns:
            The flushes that have to be sent.
        """
        limits = [
            number
            for option in options.values()
            for number in (option.buffer_bytes, round(option.buffer_seconds * 1000))
        ]
        reply = self._call(
            lambda redis, keys: BUFFER_EXPORT(
                redis,
                [name for app_id in options for name in keys.export(app_id)],
                [event, *limits],
            )
        )
        flushes = zip(options, reply[::2], reply[1::2], strict=True)
        return [
            _Flush(app_id=app_id, due=due.decode(), delay=delay / 1000)
            for app_id, due, delay in flushes
            if due
        ]

    def _take(
        self,
        app_id: str,
        options: ExportOptions,
        what: Literal["all", "due", "none"],
        owner: str,
        done: str,
    ) -> _Batch | _Flush | None:
        """Take a batch out of an installation's buffer.

        Args:
            app_id: the installation.
            options: how large a batch may be.
            what: take also what is neither full nor due, only that, or nothing any more.
            owner: who takes it; gets the same batch again until that is done.
            done: the id of the batch that the owner took before and has sent, or "".

        Returns:
            A batch; when to look again, if it is not due or another owner has one; None if there
            is nothing.
        """
        limits = [options.buffer_bytes, round(options.buffer_seconds * 1000), what]
        reply = self._call(
            lambda redis, keys: TAKE_EXPORT(
                redis, list(keys.export(app_id)), [owner, done, str(uuid4()), *limits]
            )
        )
        if not reply:
            return None
        if not reply[0]:
            return _Flush(app_id=app_id, due=reply[1].decode(), delay=reply[2] / 1000)
        return _Batch(id=reply[0].decode(), events=loads(reply[1]))

    def _call(self, function: Callable[[Any, Keys], T]) -> T:
        """Call a function with Redis; raises StoreUnavailableError, ConfigurationError."""
        return self._server.call(function, _WHAT)

    def _options_of(self, installation: Installation) -> ExportOptions:
        known = self._options.get(installation.id)
        if known is None or known[0] != installation.version:
            options, wrong = ExportOptions.of(installation.config)
            for sentence in wrong:
                logger.error(
                    "the config of app id %r: %s; till then the default, or the nearest, counts",
                    installation.id,
                    sentence,
                )
            known = self._options[installation.id] = (installation.version, options)
        return known[1]
