"""A fetched message and its acknowledgement, which the channel's lease brings to Redis."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ContentDisallowed
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from posthog_jobs.broker.envelope import body_of, check_depth

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


class QoS(kombu_redis.QoS):
    """Prefetch credit and acknowledgements.

    kombu records a message in `unacked` when it is delivered; ours is in flight since the fetch,
    so there is nothing left to write here.
    """

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Count a delivered message against the prefetch credit."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Let a message go for good; from any thread."""
        self.channel.lease.ack(delivery_tag)
        self._quick_ack(delivery_tag)

    def fail(self, delivery_tag: str, failure: FailedJob) -> None:
        """Let a message go to the failed jobs; from any thread."""
        self.channel.lease.fail(delivery_tag, failure)
        self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message at the back of its queue, or let it go; from any thread."""
        if requeue:
            self.channel.lease.requeue(delivery_tag)
            self._quick_ack(delivery_tag)
        else:
            self.ack(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ARG002 - kombu's signature
        """Put what is not acknowledged back at the front of its queues."""
        self._flush()
        self.channel.lease.put_back(list(self._delivered), front=True)
        self._delivered.clear()

    def running(self) -> set[str]:
        """Tags of messages whose task a Celery worker of this process is running, or has just run.

        When a connection is lost, Celery forgets what it had not started and lets the rest run on;
        that rest must not be put back, or it would run twice. In a cold shutdown nothing runs on.
        """
        state = sys.modules.get("celery.worker.state")
        if state is None or state.should_terminate is not None:
            return set()
        active = {request.id for request in list(state.active_requests)}
        return {
            tag
            for tag, message in list(self._delivered.items())
            if tag not in self._dirty and (message.is_ending or message.headers.get("id") in active)
        }

    @property
    def visibility_timeout(self) -> float:
        """Seconds after which a message in kombu's own `unacked` belongs to nobody.

        That is where stock workers keep theirs, and they do not renew them, so the stock value
        holds for them and not the length of our lease.
        """
        timeout: float = self.channel.stock_visibility_timeout
        return timeout


def _inflated(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose body is not compressed: kombu would unpack it without a limit."""
    headers = payload.get("headers") or {}
    if not headers.get("compression") or not payload.get("body"):
        return payload
    return {
        **payload,
        "body": body_of(payload),
        "headers": {name: value for name, value in headers.items() if name != "compression"},
        "properties": {**payload["properties"], "body_encoding": None},
    }
