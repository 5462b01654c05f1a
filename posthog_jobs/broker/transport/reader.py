"""Reads what was fetched from a queue; what is not a message, or not due, is not handed over."""

from __future__ import annotations

from socket import gethostname
from time import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kombu.log import get_logger

from posthog_jobs.broker import envelope
from posthog_jobs.broker.failure import FailedJob, Reason
from posthog_jobs.broker.redis import UNREACHABLE
from posthog_jobs.jobs.payload import loads

if TYPE_CHECKING:
    from collections.abc import Callable

logger = get_logger("kombu.transport.redis")


class Reader:
    """Reads messages for a channel.

    Args:
        postpone: called with a tag, its queue, the message, and when that is due, in ms: moves it
            into the schedule, and tells whether it did.
        refuse: called with a tag whose message cannot even be read, to be kept as failed.
    """

    __slots__ = ("_postpone", "_refuse")

    def __init__(
        self,
        postpone: Callable[[str, str, dict[str, Any], int], bool],
        refuse: Callable[[str, FailedJob], None],
    ) -> None:
        self._postpone = postpone
        self._refuse = refuse

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
            # nearly every one is not even looked at for when it is due
            return (
                None
                if queue
                and (message.get("headers") or {}).get("eta")
                and self._is_postponed(tag, queue, message)
                else message
            )
        except UNREACHABLE:
            raise
        except Exception as error:  # a message that is not ours may hold anything
            if not envelope.is_to_blame(raw, error):
                raise
            self._refuse(tag, _failure_of(message, error))
            return None

    def _is_postponed(self, tag: str, queue: str, message: dict[str, Any]) -> bool:
        """Move a message that a stock producer queued before its time into the schedule.

        One that is due loses its `eta`, or Celery would send it through a timer.
        """
        headers = message["headers"]
        due = envelope.due_of(headers)
        if due is None:
            return False
        if due > time() * 1000 and self._postpone(tag, queue, message, due):
            return True
        headers["eta"], headers[envelope.DUE_HEADER] = None, due
        return False


def _failure_of(message: Any, error: Exception) -> FailedJob:
    """Describe what cannot even be read, as it is kept among the failed jobs."""
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
    return failure
