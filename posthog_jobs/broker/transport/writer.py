"""Writes messages to the broker: into a queue, or into the schedule."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

from posthog_jobs.broker import envelope, scripts
from posthog_jobs.broker.transport.outcome import Outcome
from posthog_jobs.broker.transport.sending import attempting, being_sent
from posthog_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from posthog_jobs.broker.transport.channel import DurableChannel
    from posthog_jobs.broker.transport.sending import Sending


class Writer:
    """Writes messages for a channel.

    Args:
        channel: what was asked to publish them.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: DurableChannel) -> None:
        self._channel = channel

    def write(self, queue: str, message: dict[str, Any], batch: Any = None) -> None:
        """Put a message that is due later, or has a key, into the schedule, else into its queue.

        Args:
            queue: the name of the queue.
            message: what kombu made of it.
            batch: what the command is added to instead of being sent, where kombu publishes
                several messages at once.
        """
        channel = self._channel
        key = self.list_of(queue, message)
        # a message that is sent on has what an earlier delivery added; and kombu sends this one,
        # with the same headers, again if this time fails
        headers = envelope.undelivered(message.get("headers") or {})
        message = {**message, "headers": headers}
        if not envelope.can_inflate(compression := headers.get("compression", "gzip")):
            raise ConfigurationError(
                f"a message for queue {queue!r} is compressed with {compression!r:.60}, which the "
                f"workers of posthog_jobs do not unpack; let its task have {envelope.COMPRESSIONS}"
            )
        due, now = envelope.due_of(headers), int(time() * 1000)
        if envelope.KEY_HEADER in headers or (due is not None and due > now):
            script = scripts.SCHEDULE
            keys, args = self.schedule_args(key, message, due or 0)
        else:
            if due is not None:
                headers[envelope.DUE_HEADER], headers["eta"] = due, None
            elif "task" in headers:
                headers[envelope.SENT_HEADER] = now
            script, args = scripts.ENQUEUE, [envelope.dumps(message)]
            keys = [channel.keys.queue(key), channel.keys.wake(key)]
        if batch is not None:
            batch.add("eval", script.text, len(keys), *keys, *args)
            return
        sending = being_sent()
        if sending is None or headers.get("id") != sending.id:  # it is sent without Celery
            script(channel.line, keys, args)
            return
        name = channel.keys.sent(sending.name, key)
        reply = self._send(sending, script, [*keys, name], [*args, "sent", sending.token])
        if reply is not None:
            status, kept = reply
            sending.outcome = Outcome(status.decode(), kept.decode())

    def list_of(self, queue: str, message: dict[str, Any]) -> str:
        """Return the name of the list that a message of a queue belongs into, by its priority."""
        channel = self._channel
        key: str = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))
        return key

    def schedule_args(
        self, key: str, message: dict[str, Any], due: int
    ) -> tuple[list[str], list[Any]]:
        """Return KEYS and ARGV of `schedule.lua`.

        Args:
            key: the list that it goes to when it is due.
            message: what kombu made of it.
            due: when it is due, in ms since the epoch.
        """
        keys, headers = self._channel.keys, message["headers"]
        partition = envelope.partition_of(
            str(headers.get(envelope.APP_HEADER, "")), str(headers.get("task", ""))
        )
        return [*keys.fixed, keys.queue(key)], [
            keys.prefix,
            envelope.identity(message),
            due,
            partition,
            str(headers.get(envelope.KEY_HEADER, "")),
            str(headers.get(envelope.IF_WAITING_HEADER, "replace")),
            envelope.pack(message),
        ]

    def _send(
        self, sending: Sending, script: scripts.Script, keys: list[str], args: list[Any]
    ) -> Any:
        """Run a script that takes a message once, also when its reply was lost before."""
        line = self._channel.line
        with attempting():
            sending.attempt()
            try:
                return script(line, keys, args)
            finally:
                sending.unanswered = sending.unanswered or line.unanswered
