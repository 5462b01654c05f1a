"""A message that is decoded the short way, and that remembers why its job failed."""

from __future__ import annotations

import base64
import json
import sys
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ContentDisallowed
from kombu.transport import virtual

from posthog_jobs.broker.envelope import check_depth, inflate

if TYPE_CHECKING:
    from posthog_jobs.broker.failure import FailedJob


class Message(virtual.Message):
    """kombu's message; its decoder calls a function for each object, in search of typed values.

    Attributes:
        failure: set where the job has failed: to acknowledge the message is then to keep it.
        is_ending: set where the job has run, and the message is about to be acknowledged.
    """

    failure: FailedJob | None = None
    is_ending = False

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(_inflated(payload), channel=channel, **kwargs)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # as base64 that is none; kombu would end the consumer
            # kombu's own place for what is wrong with a message: consumers look there first
            self.errors = [sys.exc_info()]
            super().__init__({**payload, "body": None}, channel=channel, **kwargs)

    def ack(self, multiple: bool = False) -> None:
        """Let the message go for good, or to the failed jobs."""
        if self.failure is not None and not self.acknowledged:
            self.channel.qos.fail(self.delivery_tag, self.failure)
            self._state = "ACK"
            return
        if self.failure is not None:  # Celery's own acknowledgement was under way just then
            return
        super().ack(multiple)
        if self.delivery_info.get("redelivered"):
            self.channel.lease.end_count(str(self.headers.get("id")))

    def _decode(self) -> Any:
        body = self.body
        if self.content_type != "application/json":
            # some that kombu always trusts name a codec of Python's that unpacks without a limit
            raise ContentDisallowed(f"a message is JSON, and not {self.content_type!r:.80}")
        if not isinstance(body, bytes) or b"__type__" in body:
            decoded = super()._decode()
        else:
            try:
                decoded = json.loads(body.decode())  # from bytes it would look for UTF-16
            except ValueError:
                decoded = super()._decode()  # kombu says in its own way that it is no JSON
        if isinstance(body, bytes):
            check_depth(body, decoded)
        return decoded


def _inflated(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose body is not compressed: kombu would unpack it without a limit."""
    headers, body = payload.get("headers") or {}, payload.get("body")
    if not (compression := headers.get("compression")) or not body:
        return payload
    properties = payload["properties"]
    data = base64.b64decode(body) if properties.get("body_encoding") == "base64" else body.encode()
    return {
        **payload,
        "body": inflate(data, compression),
        "headers": {name: value for name, value in headers.items() if name != "compression"},
        "properties": {**properties, "body_encoding": None},
    }
