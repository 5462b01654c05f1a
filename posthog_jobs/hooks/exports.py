"""Brings processed events to `export_events`: into a buffer, out of it, and in batches to it."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from uuid import uuid4

from posthog_jobs.apps.export_options import ExportOptions
from posthog_jobs.errors import ConfigurationError, RetryError, StoreUnavailableError
from posthog_jobs.hooks.events import is_snapshot
from posthog_jobs.hooks.export_buffer import Batch, ExportBuffer, Flush
from posthog_jobs.jobs.execution import in_worker
from posthog_jobs.jobs.payload import dumps
from posthog_jobs.jobs.retry import ON_EXPORT_RETRY, delay_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.broker.redis import RedisServer

logger = logging.getLogger(__name__)

Event = dict[str, Any]

#: Seconds that a process that stops spends on exporting; what is left waits for another worker.
PATIENCE: Final = 5.0
#: Seconds between two looks at a buffer that another process exports from at that moment.
LOOK: Final = 0.1


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

    __slots__ = ("_buffer", "_filled", "_is_buffering", "_options", "_sender")

    def __init__(self, sender: ExportSender, server: RedisServer) -> None:
        self._sender: Final = sender
        self._buffer: Final = ExportBuffer(server)
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
            flushes = self._buffer.add(dumps(event), options)
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
            self._send(self._buffer.add("", options))

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
            taken = self._buffer.take(app_id, options, owner=owner, done=done, what="due")
            if not isinstance(taken, Batch):
                break
            self._sender.export_events(app_id, taken.events, taken.id)
            done = taken.id
        if taken is not None:
            self._send([taken])

    def drop(self, app_id: str) -> None:
        """Delete what an installation's buffer holds."""
        with suppress(ConfigurationError):  # without Redis there are no buffers
            self._buffer.delete(app_id)

    def drain(
        self,
        installation: Installation,
        batch: Callable[[str, list[Event]], Callable[[], None]],
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
            taken = self._buffer.take(app_id, options, owner=owner, done=done, what=what)
            if taken is None:
                return
            if isinstance(taken, Flush):
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

    def drain_all(self, batch: Callable[[str, list[Event]], Callable[[], None]]) -> None:
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

    def _send(self, flushes: Iterable[Flush]) -> None:
        for flush in flushes:
            self._sender.flush_export(flush.app_id, flush.delay)
            with suppress(StoreUnavailableError):  # then the next event sends one more
                self._buffer.sent(flush)

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
