"""The message of a failed job, as it is sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from posthog_jobs.broker.records import (
    DUE_HEADER,
    ERROR_HEADER,
    IF_WAITING_HEADER,
    KEY_HEADER,
    REPLAY_HEADER,
    SENT_HEADER,
    dumps,
)
from posthog_jobs.errors import ReplayError
from posthog_jobs.worker.durable_task import WAITED

if TYPE_CHECKING:
    from posthog_jobs.broker.failure import FailedJob

#: Headers that a replay does not take over.
_DROPPED: Final = (
    KEY_HEADER,
    IF_WAITING_HEADER,
    DUE_HEADER,
    ERROR_HEADER,
    SENT_HEADER,
    WAITED,
    "redelivered",
)


def replayed(job: FailedJob, task_id: str) -> str:
    """Return the message under another id, with its attempts counted anew; its body stays.

    Args:
        job: the failed job, with its message.
        task_id: the id to send it under.

    Raises:
        ReplayError: it is no message of a task.
    """
    message = job.envelope
    headers = message.get("headers") if message is not None else None
    if message is None or not headers or not isinstance(headers.get("task"), str):
        raise ReplayError(f"{job.id} is no message of a task; look at it, and discard it")
    headers = {name: value for name, value in headers.items() if name not in _DROPPED}
    if headers.get("root_id") in (job.id, None):
        headers["root_id"] = task_id
    headers |= {"id": task_id, "retries": 0, "eta": None, "expires": None, REPLAY_HEADER: job.id}
    info = {**(message["properties"].get("delivery_info") or {})}
    info.pop("redelivered", None)
    properties = {
        **message["properties"],
        "correlation_id": task_id,
        "delivery_tag": task_id,
        "delivery_info": info,
    }
    message = {name: part for name, part in message.items() if name != "redelivered"}
    return dumps({**message, "headers": headers, "properties": properties})
