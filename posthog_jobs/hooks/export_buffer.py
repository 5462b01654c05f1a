"""Where events wait to be exported together: on Redis, in a list for each installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import uuid4

from posthog_jobs.broker.scripts import BUFFER_EXPORT, TAKE_EXPORT
from posthog_jobs.jobs.payload import loads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.apps.export_options import ExportOptions
    from posthog_jobs.broker.redis import RedisServer

#: What needs Redis here, for messages.
WHAT: Final = "the buffers of export_events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events that left the buffer together.

    Attributes:
        id: the task id under which they are exported, also if they have to be sent twice.
        events: in the order in which they came.
    """

    id: str
    events: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """When a buffer has to be looked at.

    Attributes:
        app_id: whose it is.
        due: the moment, as the buffer knows it.
        delay: seconds from now until then.
    """

    app_id: str
    due: str
    delay: float


class ExportBuffer:
    """The buffers of all installations. It outlives every worker.

    Every method raises StoreUnavailableError when Redis does not answer, and ConfigurationError
    when there is none.
    """

    __slots__ = ("_server",)

    def __init__(self, server: RedisServer) -> None:
        self._server: Final = server

    def add(self, event: str, options: Mapping[str, ExportOptions]) -> list[Flush]:
        """Append an event.

        Args:
            event: as JSON; "" appends nothing.
            options: app id → the options of an installation that exports it.

        Returns:
            The flushes that have to be sent, and then noted with `sent`.
        """
        limits = [
            number
            for option in options.values()
            for number in (option.buffer_bytes, round(option.buffer_seconds * 1000))
        ]
        reply = self._server.call(
            lambda redis, keys: BUFFER_EXPORT(
                redis,
                [name for app_id in options for name in keys.export(app_id)],
                [event, *limits],
            ),
            WHAT,
        )
        flushes = zip(options, reply[::2], reply[1::2], strict=True)
        return [
            Flush(app_id=app_id, due=due.decode(), delay=delay / 1000)
            for app_id, due, delay in flushes
            if due
        ]

    def sent(self, flush: Flush) -> None:
        """Note that a flush is on its way, so that nobody else sends it."""
        self._server.call(
            lambda redis, keys: redis.hset(keys.export(flush.app_id)[1], "armed", flush.due), WHAT
        )

    def delete(self, app_id: str) -> None:
        """Delete an installation's buffer, with all that is in it."""
        self._server.call(lambda redis, keys: redis.unlink(*keys.export(app_id)), WHAT)

    def take(
        self,
        app_id: str,
        options: ExportOptions,
        *,
        owner: str,
        done: str,
        what: Literal["all", "due", "none"],
    ) -> Batch | Flush | None:
        """Take a batch out of an installation's buffer.

        Args:
            app_id: the installation.
            options: how large a batch may be.
            owner: who takes it; gets the same batch again until that is done.
            done: the id of the batch that the owner took before and has sent, or "".
            what: take also what is neither full nor due, only that, or nothing any more.

        Returns:
            A batch; when to look again, if it is not due or another owner has one; None if there
            is nothing.
        """
        limits = [options.buffer_bytes, round(options.buffer_seconds * 1000), what]
        reply = self._server.call(
            lambda redis, keys: TAKE_EXPORT(
                redis, list(keys.export(app_id)), [owner, done, str(uuid4()), *limits]
            ),
            WHAT,
        )
        if not reply:
            return None
        if not reply[0]:
            return Flush(app_id=app_id, due=reply[1].decode(), delay=reply[2] / 1000)
        return Batch(id=reply[0].decode(), events=loads(reply[1]))
