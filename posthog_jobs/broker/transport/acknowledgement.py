"""Acknowledgement of fetched messages, against the channel's lease."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

if TYPE_CHECKING:
    from kombu.transport.virtual import Message

    from posthog_jobs.broker.failure import FailedJob


class QoS(kombu_redis.QoS):
    """Prefetch credit and acknowledgements.

    kombu records a message in `unacked` when it is delivered; ours is in flight since the fetch,
    so there is nothing left to write here.
    """

    def append(self, message: Message, delivery_tag: str) -> None:
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
