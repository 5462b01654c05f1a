"""RabbitMQ as the broker: what is due later waits there, what failed is kept on a Redis beside it.

Celery's native delayed delivery publishes a delayed message to the first of 28 exchanges and
queues, one for each bit of the delay in seconds, and workers declare them at their start. What that
leaves open is closed here: delays that are not whole seconds, delays that are too long, and a
producer that comes before any worker.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import NotFound, PreconditionFailed
from celery.utils.quorum_queues import detect_quorum_queues
from celery.utils.time import subtract_datetimes
from dateutil.parser import isoparse
from kombu.transport.native_delayed_delivery import (
    MAX_NUMBER_OF_BITS_TO_USE,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from posthog_jobs.broker.envelope import body_of, dumps, netstrings
from posthog_jobs.broker.failures import FailureKeeper, Failures
from posthog_jobs.broker.transport.sending import publishing
from posthog_jobs.errors import ConfigurationError, DelayTooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from celery import Celery
    from kombu import Queue

    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.broker.schedule import Schedule

#: kombu's names for the transports that speak with RabbitMQ.
TRANSPORTS: Final = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})

#: Celery settings that differ from Celery's own defaults on RabbitMQ alone: Celery delays messages
#: natively where it sees a quorum queue, and where the exchange of the message's queue is no direct
#: one. The second pair is for the queues that only `task_routes` or `worker -Q` name.
DEFAULTS: Final = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
}

#: What a delay can be at most, in seconds; about eight and a half years.
LONGEST_DELAY: Final = 2**MAX_NUMBER_OF_BITS_TO_USE - 1

#: The names of all exchanges that delayed messages pass begin so.
_DELAY_EXCHANGES: Final = "celery_delayed_"
#: How the names of headers begin that RabbitMQ sets.
_SERVERS: Final = "x-"
#: The header by which kombu has unpacked the body, unless that failed.
_COMPRESSION: Final = "compression"
#: Properties that a message is sent again with.
_SENT: Final = ("correlation_id", "reply_to", "priority")


def scheme(url: object) -> str:
    """Return the scheme of a broker URL, of the first where there are several, or ""."""
    first = url if isinstance(url, str) else next(iter(url), "") if url else ""  # type: ignore[call-overload]
    before, mark, _ = str(first).partition("://")
    return before.partition("+")[0] if mark else ""


def is_configured(conf: Any) -> bool:
    """Tell whether a Celery configuration has RabbitMQ as its broker; no connection is made."""
    urls = [url for url in (conf.broker_write_url, conf.broker_read_url) if url]
    # as kombu: a transport that is named wins over the scheme, and no scheme means amqp
    names = {conf.broker_transport or scheme(url) or "amqp" for url in urls}
    return bool((names or {conf.broker_transport}) & TRANSPORTS)


def defaults(conf: Any) -> dict[str, Any]:
    """Return the settings that go below a configuration: none where the broker is not RabbitMQ."""
    if not is_configured(conf):
        return {}
    chosen: dict[str, Any] = dict(DEFAULTS)
    if conf.broker_url is None:
        # Celery's worker prepares delayed delivery on broker_url, and does not start without one
        chosen["broker_url"] = conf.broker_write_url or conf.broker_read_url
    return chosen


def transport_options(conf: Any, given: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of a connection, in which RabbitMQ confirms each message.

    Without that, a message that it refuses is lost, and the publisher does not hear of it.

    Args:
        conf: the Celery configuration; its `broker_transport_options` win.
        given: options of this connection, which win over both.
    """
    return {"confirm_publish": True, **conf.broker_transport_options, **(given or {})}


def name_is_taken(error: PreconditionFailed) -> ConfigurationError:
    """Say what to do where RabbitMQ has a queue or an exchange of a name, but of another kind.

    So it is after another Celery app that left Celery's defaults.
    """
    return ConfigurationError(
        f"RabbitMQ has what posthog_jobs declares, but of another kind: {error.reply_text}; set "
        "task_default_queue to a name that nothing else uses, or delete the old queue and exchange "
        "when they are empty"
    )


class RabbitMQBroker:
    """RabbitMQ, with a Redis beside it if there is one; see `posthog_jobs.broker.broker.Broker`."""

    knows_keys: Final = False
    ends_counts: Final = False

    def __init__(
        self,
        app: Celery,
        schedule: Schedule,
        records: RedisServer,
        *,
        max_failures: int,
        retry_policy: dict[str, Any],
    ) -> None:
        """Connect to nothing yet.

        Args:
            app: what has queues, a router, and connections.
            schedule: that of the broker, which says that only Redis has one.
            records: the Redis beside it, or what says that there is none.
            max_failures: how many failed jobs are kept.
            retry_policy: how often kombu tries to send a message.
        """
        self._app: Final = app
        self._max_failures: Final = max_failures
        self._retry_policy: Final = retry_policy
        self.schedule: Final = schedule
        self.records: Final = records
        #: Kept on the Redis beside it, and sent again from there.
        self.failures: Final = Failures(records, send=self._send)

    @cached_property
    def delays(self) -> Delays | None:
        """What holds delayed messages, unless that is configured away."""
        # each look at Celery's settings takes as long as a packing
        return Delays(self._app) if detect_quorum_queues(self._app, "amqp")[0] else None

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
            TypeError, ValueError: the message holds what is not JSON.
        """
        info = message.delivery_info
        queue = queue_of(self._app.amqp.queues, info.get("exchange"), info.get("routing_key"))
        held = netstrings("" if queue is None else queue.name) + dumps(_enveloped(message))
        client, keys = self.records.connected()
        FailureKeeper(keys, self._max_failures).keep(client, failure, held)

    def _send(self, name: str, text: str) -> None:
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
        with publishing(), app.producer_or_acquire() as producer:
            try:
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
                    retry_policy=self._retry_policy,
                    **{key: value for key in _SENT if (value := properties.get(key)) is not None},
                )
            except PreconditionFailed as error:
                raise name_is_taken(error) from error


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


class Delays:
    """Sees to it that RabbitMQ can hold the delayed messages that an app sends.

    Args:
        app: the Celery app.
    """

    __slots__ = ("_app", "_prepared")

    def __init__(self, app: Celery) -> None:
        self._app: Final = app
        self._prepared: Final[set[str]] = set()

    def due(self, moment: datetime, now: datetime) -> datetime:
        """Return when the broker lets go of a message that waits for a moment, never before it.

        Raises:
            DelayTooLongError: it is RabbitMQ, and the delay over 2^28 - 1 seconds.
        """
        seconds = (moment - now).total_seconds()
        self._check(seconds)
        return now + timedelta(seconds=math.ceil(seconds))

    def _check(self, seconds: float) -> None:
        if seconds > LONGEST_DELAY:
            raise DelayTooLongError(
                f"a delay of {seconds:.0f} s is more than RabbitMQ can hold, which is "
                f"{LONGEST_DELAY} s (8.5 years); let the job trigger itself again on the way, or "
                "use Redis as the broker, which holds any delay"
            )

    def send(
        self,
        send: Callable[..., Any],
        countdown: float | None,
        eta: datetime | str | None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """Send a delayed message.

        Args:
            send: Celery's `send_task`, with the task and its arguments.
            countdown: seconds, as Celery's `apply_async` takes it.
            eta: the moment instead, which wins over the countdown, as in Celery.
            arguments: what else `send` takes.
            options: what it takes by name.

        Raises:
            DelayTooLongError: it is delayed by over 2^28 - 1 seconds.
            ConfigurationError: the names of two queues would make it run twice.
        """
        delay = self._whole_seconds(countdown, eta)
        if delay is not None:
            router = options.get("router") or self._app.amqp.router
            options["router"] = DelayRouter(router, self._app.amqp.queues, self)
        try:
            return send(delay, None, *arguments, **options)
        except NotFound:  # somebody has deleted what was declared, or reset the broker
            self._prepared.clear()
            return send(delay, None, *arguments, **options)

    def _whole_seconds(self, countdown: float | None, eta: datetime | str | None) -> int | None:
        """Return a delay as RabbitMQ can hold it: whole seconds, rounded up, so never early.

        Celery cuts the fraction off, lets a worker hold the message in memory for that part, and
        raises a ValueError where nothing is left (`calculate_routing_key(int(countdown), …)`).

        Returns:
            The seconds, or None when it is due now.

        Raises:
            DelayTooLongError: it is over 2^28 - 1 seconds.
        """
        delay = countdown or 0
        if eta:
            moment = isoparse(eta) if isinstance(eta, str) else eta
            delay = subtract_datetimes(moment, self._app.now()).total_seconds()
        self._check(delay)
        return math.ceil(delay) if delay > 0 else None

    def prepare(self, queue: Queue) -> None:
        """Declare what a delayed message passes on its way to a queue, and the queue.

        Celery's workers do that at their start, for the queues that they know. But to RabbitMQ a
        message for an exchange that is not there is an error, and one that finds no queue at its
        end is stuck. Once for each queue; what is there already stays as it is.

        Args:
            queue: where the message shall arrive.

        Raises:
            ConfigurationError: it would arrive in another queue as well, and run twice.
            kombu.exceptions.OperationalError, amqp.exceptions.AMQPError: that cannot be done now.
        """
        if queue.name in self._prepared:
            return
        self._check_routing_key(queue)
        conf = self._app.conf
        with self._app.connection_for_write() as connection:
            # as patient as Celery is with a publish
            patience = {"max_retries": 3, **(conf.task_publish_retry_policy or {})}
            patience.pop("retry_errors", None)
            connection.ensure_connection(**patience)
            declare_native_delayed_delivery_exchanges_and_queues(
                connection, conf.broker_native_delayed_delivery_queue_type
            )
            queue(connection.default_channel).declare()
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        self._prepared.add(queue.name)

    def _check_routing_key(self, queue: Queue) -> None:
        """Refuse a key that another queue's binding, `#.<key>`, matches too."""
        for other in self._app.amqp.queues.values():
            if other.name == queue.name or not other.routing_key:
                continue
            if queue.routing_key.endswith(f".{other.routing_key}"):
                raise ConfigurationError(
                    f"delayed jobs for queue {queue.name!r} would also run from queue "
                    f"{other.name!r}, since the routing key {queue.routing_key!r} ends with "
                    f"'.{other.routing_key}'; rename one of the queues"
                )


class DelayRouter:
    """Celery's router, for a delayed message: its queue is one that RabbitMQ can deliver to."""

    __slots__ = ("_delays", "_queues", "_router")

    def __init__(self, router: Any, queues: Any, delays: Delays) -> None:
        """Wrap a router.

        Args:
            router: Celery's, or the one that the caller chose.
            queues: the app's queues by name.
            delays: prepares the queue.
        """
        self._router: Final = router
        self._queues: Final = queues
        self._delays: Final = delays

    def route(self, options: dict[str, Any], *arguments: Any, **named: Any) -> dict[str, Any]:
        """Return the options with the message's destination, as Celery's router does."""
        routed: dict[str, Any] = self._router.route(self._returned(options), *arguments, **named)
        queue = routed.get("queue")
        if queue is not None and queue.exchange.type != "direct":
            self._delays.prepare(queue)
        return routed

    def _returned(self, options: dict[str, Any]) -> dict[str, Any]:
        """Send a retry to the queue that it came from.

        Celery gives a retry the exchange and the routing key that the message was delivered with,
        and where it then delays it, looks at the queue alone, which would be the default one.
        """
        key = options.get("routing_key")
        if options.get("queue") is not None or not key or "exchange" not in options:
            return options
        exchange = getattr(options["exchange"], "name", options["exchange"])
        queue = queue_of(self._queues, exchange, key)
        if queue is None:
            return options
        kept = {k: v for k, v in options.items() if k not in ("exchange", "routing_key")}
        return {**kept, "queue": queue}


def queue_of(queues: Mapping[str, Queue], exchange: str | None, key: str | None) -> Queue | None:
    """Return the queue that a message was delivered from; None for one that is not known.

    Args:
        queues: the app's queues by name.
        exchange: the exchange that it was delivered by, which may be one that delays.
        key: the routing key that it was delivered with.
    """
    exchange, key = exchange or "", key or ""
    delayed = exchange.startswith(_DELAY_EXCHANGES)
    if delayed:
        key = key.split(".", MAX_NUMBER_OF_BITS_TO_USE)[-1]
    for queue in queues.values():
        if queue.routing_key == key and (delayed or queue.exchange.name == exchange):
            return queue
    return None
