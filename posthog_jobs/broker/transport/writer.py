"""Writes messages to the broker: into a queue, or into the schedule."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

from posthog_jobs.broker import envelope, scripts
from posthog_jobs.broker.transport.outcome import Outcome, last_outcome
from posthog_jobs.broker.transport.sending import attempting

if TYPE_CHECKING:
    from posthog_jobs.broker.transport.channel import DurableChannel


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
            message: what kombu made of it; its headers get its due time, or when it was sent.
            batch: what the command is added to instead of being sent, where kombu publishes
                several messages at once.
        """
        channel = self._channel
        key = self.list_of(queue, message)
        headers = message.get("headers") or {}
        due = envelope.due_of(headers)
        if due is not None and due <= time() * 1000 and envelope.KEY_HEADER not in headers:
            headers[envelope.DUE_HEADER], headers["eta"], due = due, None, None
        if due is None and envelope.KEY_HEADER not in headers:
            if "task" in headers:
                headers[envelope.SENT_HEADER] = int(time() * 1000)
            script, args = scripts.ENQUEUE, [envelope.dumps(message)]
            keys = [channel.keys.queue(key), channel.keys.wake(key)]
        else:
            script = scripts.SCHEDULE
            keys, args = self.schedule_args(key, message, due or 0)
        if batch is not None:
            batch.add("eval", script.text, len(keys), *keys, *args)
            return
        reply = self._send(script, keys, args)
        if reply is not None:
            status, name = reply
            last_outcome.set(Outcome(status.decode(), name.decode()))

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

    def _send(self, script: scripts.Script, keys: list[str], args: list[Any]) -> Any:
        """Run a script that takes a message once, also when its reply was lost before."""
        line = self._channel.line
        with attempting() as message:
            if message is None:
                return script(line, keys, args)
            again = message.attempt()
            keys = [*keys, self._channel.keys.sent(message.sender)]
            args = [*args, "sent", message.token, "1" if again else "0"]
            try:
                return script(line, keys, args)
            finally:
                message.unanswered = message.unanswered or line.unanswered
