"""Failed jobs of RabbitMQ: kept on the Redis beside it, and sent again from there."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import PreconditionFailed

from posthog_jobs.broker import scripts
from posthog_jobs.broker.envelope import body_of, dumps, netstrings
from posthog_jobs.broker.rabbitmq import REFUSALS, name_is_taken, queue_of
from posthog_jobs.broker.transport.dead_letters import KEPT_FOR, TRIM, warn_of_dropped
from posthog_jobs.broker.transport.sending import publishing
from posthog_jobs.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from kombu import Queue

    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.celery import PostHogJobs

#: How the names of headers begin that RabbitMQ sets.
_SERVERS: Final = "x-"
#: The header by which kombu has unpacked the body, unless that failed.
_COMPRESSION: Final = "compression"

#: Properties that a message is sent again with.
_SENT: Final = ("correlation_id", "reply_to", "priority")


class FailuresBeside:
    """What stands for the transport's own failed jobs where the broker is RabbitMQ."""

    __slots__ = ("_app", "_server")

    def __init__(self, app: PostHogJobs, server: RedisServer) -> None:
        """Remember both.

        Args:
            app: the Celery app, which sends.
            server: the Redis beside its broker.
        """
        self._app: Final = app
        self._server: Final = server

    def keep(self, failure: FailedJob, message: Any) -> None:
        """Keep a message that failed and is not acknowledged yet.

        A worker that is killed between the two has it delivered again, and keeps it once: by its
        id.

        Args:
            failure: why and how it failed.
            message: kombu's.

        Raises:
            UnsupportedByBrokerError: there is no Redis.
            redis.exceptions.RedisError, kombu.exceptions.KombuError, OSError: it does not answer.
            TypeError, ValueError: the message holds what is no JSON.
        """
        info = message.delivery_info
        queue = queue_of(self._app.amqp.queues, info.get("exchange"), info.get("routing_key"))
        held = netstrings("" if queue is None else queue.name) + dumps(_enveloped(message))
        client, keys = self._server.connected()
        most = self._app.settings.max_failures
        dropped = scripts.KEEP(
            client,
            [*keys.fixed, *keys.failures],
            [
                keys.prefix, failure.id, failure.partition, failure.details, held,
                KEPT_FOR, most, TRIM,
            ],
        )  # fmt: skip
        if dropped:
            warn_of_dropped(dropped, most)

    def send(self, name: str, text: str) -> None:
        """Send a message that was kept, as it is.

        Args:
            name: the queue that it came from; empty for the one that its task is routed to.
            text: the message, as JSON.

        Raises:
            BrokerUnavailableError: RabbitMQ does not take it.
            ConfigurationError: it has the queue, or its exchange, of another kind.
        """
        app, message = self._app, json.loads(text)
        headers, properties = message["headers"], message["properties"]
        queue: Queue = (
            app.amqp.queues[name] if name else app.amqp.router.route({}, headers["task"])["queue"]
        )
        try:
            with publishing(), app.producer_or_acquire() as producer:
                producer.publish(
                    body_of(message),
                    exchange=queue.exchange,
                    routing_key=queue.routing_key,
                    declare=[queue],
                    headers=headers,
                    content_type=message["content-type"],
                    content_encoding=message["content-encoding"],
                    delivery_mode="persistent",
                    retry=True,
                    retry_policy=app.retry_policy,
                    **{key: value for key in _SENT if (value := properties.get(key)) is not None},
                )
        except PreconditionFailed as error:
            raise name_is_taken(error) from error
        except REFUSALS as error:
            raise BrokerUnavailableError(f"RabbitMQ refuses a message: {error}") from error


def _enveloped(message: Any) -> dict[str, Any]:
    """Return a message as it would be on Redis, which is the form that failed jobs are read in."""
    body = message.body
    data = body.encode() if isinstance(body, str) else bytes(body or b"")
    headers = {
        name: value
        for name, value in message.headers.items()
        if not name.startswith(_SERVERS) and (name != _COMPRESSION or message.errors)
    }
    known = {key: message.properties.get(key) for key in _SENT}
    return {
        "body": base64.b64encode(data).decode(),
        "content-encoding": message.content_encoding,
        "content-type": message.content_type,
        "headers": headers,
        "properties": {**known, "body_encoding": "base64", "delivery_tag": "", "delivery_info": {}},
    }
