"""Reads what was fetched from a queue; what is no message, or not due, is not handed over."""

from __future__ import annotations

from socket import gethostname
from time import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kombu.log import get_logger
from redis.exceptions import RedisError

from posthog_jobs.broker import envelope, scripts
from posthog_jobs.broker.failure import FailedJob, Reason
from posthog_jobs.jobs.payload import loads

if TYPE_CHECKING:
    from posthog_jobs.broker.transport.channel import DurableChannel

logger = get_logger("kombu.transport.redis")


class Reader:
    """Reads messages for a channel.

    Args:
        channel: what fetched them.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: DurableChannel) -> None:
        self._channel = channel

    def read(self, tag: str, raw: bytes, queue: str | None = None) -> dict[str, Any] | None:
        """Return the message to hand over.

        Args:
            tag: its tag in flight.
            raw: the message.
            queue: where it came from; without it, it is handed over before it is due, too.

        Returns:
            None when it cannot be read, and was kept as failed, or waits for its time now.
        """
        message = None
        try:
            message = loads(raw)
            envelope.check_depth(raw, message)
            envelope.check_shape(message)
            properties = message["properties"]
            properties["delivery_tag"] = tag
            if queue:
                # what is sent again goes where it came from, and not where a message says it did
                info = properties["delivery_info"] = properties.get("delivery_info") or {}
                info["exchange"], info["routing_key"] = "", queue
                if "redelivered" in message or "redelivered" in (message.get("headers") or ()):
                    info["redelivered"] = True
            return None if queue and self._postpone(queue, tag, message) else message
        except (RedisError, OSError):
            raise
        except Exception as error:  # a message that is not ours may hold anything
            if not envelope.is_to_blame(raw, error):
                raise
            self._refuse(tag, message, error)
            return None

    def _refuse(self, tag: str, message: Any, error: Exception) -> None:
        """Keep what cannot even be read among the failed jobs."""
        headers = message.get("headers") if isinstance(message, dict) else None
        failure = FailedJob.of(
            headers if isinstance(headers, dict) else {},
            fallback_id=str(uuid4()),
            reason=Reason.UNDECODABLE,
            error=error,
            worker=gethostname(),
        )
        logger.error(
            "A message that cannot be read is kept as failed, under the id %s: %s",
            failure.id,
            failure.exception,
        )
        lease = self._channel.lease
        lease.fail(tag, failure)
        if lease.on_refused is not None:
            lease.on_refused()

    def _postpone(self, queue: str, tag: str, message: dict[str, Any]) -> bool:
        """Move a message that a stock producer queued before its time into the schedule.

        One that is due loses its `eta`, or Celery would send it through a timer.
        """
        headers = message.get("headers")
        if not headers or not headers.get("eta"):
            return False
        due = envelope.due_of(headers)
        if due is None:
            return False
        channel = self._channel
        if due > time() * 1000 and queue not in channel._no_ack_queues:
            writer = channel.writer
            keys, args = writer.schedule_args(writer.list_of(queue, message), message, due)
            scripts.SCHEDULE(channel.line, [*keys, channel.lease.inflight], [*args, "held", tag])
            channel.lease.forget(tag)
            return True
        headers["eta"], headers[envelope.DUE_HEADER] = None, due
        return False
