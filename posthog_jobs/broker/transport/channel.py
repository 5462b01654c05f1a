"""The channel: what kombu publishes and consumes through, and a worker's turns."""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import contextmanager
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import RecoverableConnectionError
from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from redis.exceptions import NoScriptError

from posthog_jobs.broker import envelope, scripts
from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.transport.acknowledgement import Message, QoS
from posthog_jobs.broker.transport.connection import Connection, tell_refusals
from posthog_jobs.broker.transport.lease import Lease
from posthog_jobs.broker.transport.reader import Reader
from posthog_jobs.broker.transport.sending import Writer, attempting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any as Base

    from posthog_jobs.broker.failure import FailedJob
else:
    Base = object

logger = get_logger("kombu.transport.redis")

#: Most messages that a fetch asks for when the prefetch count is 0, that is, unlimited.
UNLIMITED: Final = 100
#: Seconds that one tick of the event loop may deliver; pools that run jobs inline block it.
DELIVERY_BUDGET: Final = 0.005
#: How many values of a turn's reply precede the messages.
REPLY_HEAD: Final = 4
#: Seconds that a worker that was busy just now sleeps before it looks again without a call.
SHORTEST_SLEEP: Final = 0.05


class DurableChannel(Base):
    """What our channels do differently; goes in front of one of kombu's Redis channels.

    Attributes:
        visibility_timeout: length of the lease, in seconds.
        stock_visibility_timeout: age, in seconds, at which a message that a stock worker left in
            `unacked` is restored. Must not be below the stock workers' own visibility timeout.
        max_failures: how many failed jobs are kept on the broker; the oldest go first.
    """

    Message = Message
    QoS = QoS
    visibility_timeout: float = 60
    stock_visibility_timeout: float = 3600
    max_failures: int = 100_000

    _fetching = False
    _fetched_at = 0.0
    _reply_lost = False
    _lease: Lease | None = None
    _shared: Any = None
    _commands: Connection | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._buffer: deque[tuple[str, str, bytes]] = deque()
        self._hungry = True
        self._no_ack_queues: set[str] = set()
        self._layout: tuple[Any, ...] = ()
        self._head_at: float | None = None
        with attempting() as message:
            if message is not None:
                message.check()  # before one more attempt to connect
            super().__init__(*args, **kwargs)
        self.keys = Keys(self.global_keyprefix)
        self.writer = Writer(self.keys)
        self.reader = Reader(self._postpone, self._refuse)

    # -- clients ----------------------------------------------------------------------------

    def _get_pool(self, *args: Any, **kwargs: Any) -> Any:
        """Return connections that tell a refusal for now from other errors; all are made here.

        Raises:
            RecoverableConnectionError: this channel is closed, as that of a message whose queue was
                declared over the next one: kombu sends it by that one, then.
        """
        if self.closed:
            raise RecoverableConnectionError("the channel is closed")
        pool = super()._get_pool(*args, **kwargs)
        tell_refusals(pool)
        return pool

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The hook of kombu for a client; one per channel, where kombu builds one per command."""
        if client is None:
            pool = self.pool
            if self._shared is None or self._shared.connection_pool is not pool:
                self._shared = self._create_client()
            client = self._shared
        yield client

    @property
    def commands(self) -> Connection:
        """The connection for scripts and other commands."""
        if self._commands is None or self._commands.pool is not self.pool:
            self._commands = Connection(self.pool)
        return self._commands

    @property
    def lease(self) -> Lease:
        """The lease on what this channel fetched; made with the first fetch."""
        if self._lease is None:
            manager: Any = self.__dict__.get("_sentinel_manager")
            pool = self._get_pool()
            # kombu would close the Sentinel of the lease's pool with the channel, before its time
            self._sentinel_manager = manager
            self._lease = Lease(pool, self.keys, self.visibility_timeout, self.max_failures)
            weakref.finalize(self, self._lease.close, ())
        return self._lease

    # -- publishing -------------------------------------------------------------------------

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Put a message that is due later, or has a key, into the schedule, else into its queue."""
        batch = kwargs.get("_publish_batch")
        self.writer.write(self.commands, self._list_of(queue, message), message, batch)
        if queue not in self._expires:
            return
        if batch is None:
            with self.conn_or_acquire() as client:
                self._maybe_update_queues_expire(client, queue)
        else:
            for step in self.priority_steps:
                batch.add("pexpire", self._q_for_pri(queue, step), self._expires[queue])

    def _list_of(self, queue: str, message: dict[str, Any]) -> str:
        """Return the name of the list that a message of a queue belongs into, by its priority."""
        name: str = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        return name

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Bind a queue, also where memory is full: kombu's own commands are refused there."""
        if queue in self._expires:
            super()._queue_bind(exchange, routing_key, pattern, queue)
            return
        if self.typeof(exchange).type == "fanout":
            self._fanout_queues[queue] = (exchange, routing_key.replace("#", "*"))
        sets = [self.keyprefix_queue % (exchange,), self.keyprefix_binding_permanent % (exchange,)]
        binding = self.sep.join([routing_key or "", pattern or "", queue or ""])
        with attempting():
            scripts.BIND(self.commands, [self.keys.queue(name) for name in sets], [binding])

    def _size(self, queue: str) -> int:
        """How many messages a queue has; a full server refuses the transaction that kombu uses."""
        return sum(self.commands.execute_command("LLEN", name) for name in self.lists_of(queue))

    @cached_property
    def _refresh_binding(self) -> Any:
        """The script of kombu that binds a queue which expires, allowed as `bind.lua` is."""
        text = f"redis.call('SREM', KEYS[1], ''){kombu_redis.REFRESH_BINDING}"
        return self._create_client().register_script(text)

    # -- fetching ---------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Start to consume; also remembers whether the queue's messages are acknowledged."""
        (self._no_ack_queues.add if no_ack else self._no_ack_queues.discard)(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _update_queue_cycle(self) -> None:
        super()._update_queue_cycle()
        self._layout = ()
        self._hungry = True

    def _room(self) -> int:
        """How many messages may be fetched now."""
        qos = self.qos
        if not qos.can_consume():
            return 0
        if "can_consume" in vars(qos):  # Celery's worker_disable_prefetch replaces it
            return 0 if self._buffer else 1
        limit = qos.prefetch_count or UNLIMITED
        used = len(qos._delivered) - len(qos._dirty) if qos.prefetch_count else 0
        return max(0, limit - used - len(self._buffer))

    def _lay_out(self) -> tuple[list[str], list[str], list[str], str]:
        """Names and keys to fetch from, wake lists, and which names are acknowledged."""
        names = self._queue_cycle.consume(len(self.active_queues))
        if not self._layout or self._layout[0] != names:
            queues = [self._q_for_pri(name, step) for step in self.priority_steps for name in names]
            self._layout = (
                list(names),
                [self.keys.queue(queue) for queue in queues],
                [self.keys.wake(), *map(self.keys.wake, queues)],
                "".join("n" if name in self._no_ack_queues else "y" for name in names),
            )
        return self._layout

    def _turn_call(self, room: int, acks: list[str]) -> tuple[list[str], list[Any]]:
        """KEYS and ARGV of `turn.lua`."""
        names, queues, _, holds = self._lay_out()
        lease = self.lease
        fair = self.queue_order_strategy == "round_robin"
        return (
            [*self.keys.fixed, lease.inflight, *queues],
            lease.turn_args(room, acks, group=len(names), fair=fair, holds=holds),
        )

    def turn(self) -> bool:
        """Acknowledge, promote and fetch at once, and deliver; whether there was anything."""
        self._recover()
        acks = self.lease.take_acks()
        names = self._queue_cycle.consume(len(self.active_queues))
        try:
            room = self._room()
            keys, args = self._turn_call(room, acks)
            self._reply_lost = True
            reply = scripts.TURN(self.commands, keys, args)
            self._reply_lost = False
        except BaseException:
            self.lease.give_back(acks)
            raise
        self._accept(reply, list(names), room)
        return self.deliver()

    def _recover(self) -> None:
        if self._reply_lost:
            self.lease.recover()
            self._reply_lost = False

    def _accept(self, reply: list[Any], names: list[str], room: int) -> None:
        """Take in the reply to a turn that asked for `room` messages."""
        lease = self.lease
        lease.note(reply)
        self._head_at = monotonic() + float(reply[0]) / 1000 if reply[0] else None
        if len(reply) == REPLY_HEAD:
            if room:
                self._hungry = False
            if self._head_at is not None:
                self.connection.cycle.arm(self._head_at)
            return
        self._hungry, self._fetched_at = True, monotonic()
        group, used = len(names), set()
        tags = []
        for at in range(REPLY_HEAD, len(reply), 3):
            name = names[(reply[at] - 7) % group]
            tag = reply[at + 1].decode()
            self._buffer.append((name, tag, reply[at + 2]))
            used.add(name)
            if name not in self._no_ack_queues:
                tags.append(tag)
        lease.hold(tags)
        for name in used:
            self._queue_cycle.rotate(name)

    def deliver(self) -> bool:
        """Hand over what was fetched, for as long as a tick of the event loop may take."""
        if not self._buffer:
            return False
        buffer, callbacks, qos = self._buffer, self.connection._callbacks, self.qos
        run_ready = self.connection.cycle.run_ready
        until, low = monotonic() + DELIVERY_BUDGET, len(buffer) // 2
        while buffer and qos.can_consume():
            name, tag, raw = buffer.popleft()
            callback = callbacks.get(name)
            if callback is None:  # cancelled meanwhile
                self.lease.put_back([tag], front=True)
                continue
            message = self.reader.read(tag, raw, name)
            if message is not None:
                callback(message)
                # In the solo pool the job has run by now, and the event loop of a consumer that
                # is not ours holds its acknowledgement: it must not wait for the jobs behind it.
                run_ready()
                if len(buffer) <= low and self._hungry and not self._in_poll:
                    self._brpop_start()  # Redis fetches more while the rest is worked off
                if monotonic() >= until:
                    break
        if buffer and self._in_poll and not self._fetching:
            # The rest must not wait for the call that this channel still listens for.
            self._head_at = monotonic()
            self.connection.cycle.arm(self._head_at)
        return True

    def _postpone(self, tag: str, queue: str, message: dict[str, Any], due: int) -> bool:
        """Move a message into the schedule, unless its queue is not acknowledged; whether it is."""
        if queue in self._no_ack_queues:
            return False
        name, held = self._list_of(queue, message), (self.lease.inflight, tag)
        self.writer.postpone(self.commands, name, message, due, held)
        self.lease.forget(tag)
        return True

    def _refuse(self, tag: str, failure: FailedJob) -> None:
        self.lease.refuse(tag, failure)

    # -- kombu's poller ---------------------------------------------------------------------

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send a turn when there may be work, else wait for a call; neither blocks.

        Named after what kombu's channel sends here. The reply makes the socket readable.
        """
        if not self.active_queues:
            return
        self._recover()
        connection = self.client.connection
        acks = self.lease.take_acks()
        self._brpop_sent_at = monotonic()
        if self._hungry or self._buffer or acks:
            self._names = list(self._queue_cycle.consume(len(self.active_queues)))
            self._asked = self._room()
            keys, args = self._turn_call(self._asked, acks)
            self._fetching, self._sent_acks = True, acks
            self._in_poll = connection
            connection.send_command("EVALSHA", scripts.TURN.sha, len(keys), *keys, *args)
        else:
            wakes = self._lay_out()[2]
            self._in_poll = connection
            connection.send_command("BLPOP", *wakes, timeout or self._sleep())

    def _sleep(self) -> float:
        """Seconds to wait for a call, which stock producers do not give.

        Half as long as nothing came, so that a worker keeps up with their messages too.
        """
        longest: float = self.brpop_timeout or 1
        return min(longest, max(SHORTEST_SLEEP, (monotonic() - self._fetched_at) / 2))

    def _brpop_read(self, **_: Any) -> bool:
        """Read the reply to what `_brpop_start` sent, and act on it."""
        fetching, self._fetching = self._fetching, False
        connection = self.client.connection
        try:
            try:
                reply = self.client.parse_response(connection, "EVALSHA" if fetching else "BLPOP")
            except NoScriptError:
                self.lease.give_back(self._sent_acks)
                self.commands.execute_command("SCRIPT", "LOAD", scripts.TURN.text)
                self._hungry = True
                return True
            except BaseException as exc:
                if fetching:
                    self.lease.give_back(self._sent_acks)
                    self._reply_lost = True
                if isinstance(exc, self.connection_errors):
                    connection.disconnect()
                raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if fetching:
            self._accept(reply, self._names, self._asked)
            found = self.deliver()
        else:
            found = self.turn()
        if not found:
            raise Empty  # lets drain_events() count its timeout
        return True

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self._fetching and self._in_poll is connection:
            self.lease.give_back(self._sent_acks)
            self._fetching, self._reply_lost = False, True
        super()._on_connection_disconnect(connection)

    def on_due(self) -> None:
        """The head of the schedule is due: take a turn beside the waiting connection."""
        if self.closed or not self.active_queues or self._fetching:
            return
        if self._buffer:
            self.deliver()
        elif self._room():
            self.turn()

    def _receive_one(self, c: Any) -> Any:
        """Read a remote control command or an event; kombu would end with what is none."""
        try:
            return super()._receive_one(c)
        except RecursionError:
            logger.error(  # noqa: TRY400  # a traceback would have a thousand frames
                "A message to all workers is left out: it nests too deep"
            )
            raise Empty from None

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        """Hand over a command or an event; Celery would start its remote control anew after others.

        That loses commands.
        """
        try:
            envelope.check_shape(message)
            message["properties"].setdefault("delivery_tag", "")
            if exchange.endswith(".pidbox"):
                envelope.check_command(self.Message(message, channel=self))
        except Exception as error:  # noqa: BLE001  # whoever sent it may have sent anything
            logger.error(  # noqa: TRY400  # a traceback would say no more
                "A message to all workers is left out: %s", type(error).__name__
            )
            raise Empty from None
        return super()._deliver_fanout_message(message, exchange)

    # -- direct access and closing ----------------------------------------------------------

    def lists_of(self, queue: str) -> list[str]:
        """The keys of the lists that a queue is, the most urgent priority first."""
        return [self.keys.queue(self._q_for_pri(queue, step)) for step in self.priority_steps]

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """Fetch one message of a queue, or None."""
        queues = self.lists_of(queue)
        args = self.lease.turn_args(1, [], group=1, fair=False, holds="n" if no_ack else "y")
        reply = scripts.TURN(self.commands, [*self.keys.fixed, self.lease.inflight, *queues], args)
        self.lease.note(reply)
        if len(reply) == REPLY_HEAD:
            return None
        _, raw_tag, body = reply[REPLY_HEAD:]
        tag = raw_tag.decode()
        if not no_ack:
            self.lease.hold([tag])
        raw = self.reader.read(tag, body)
        if raw is None:
            return None
        message = self.Message(raw, channel=self)
        if not no_ack:
            self.qos.append(message, tag)
        return message

    def close(self) -> None:
        """Stop consuming, and put back what was fetched and is not running."""
        if not self.closed:
            client = self.__dict__.get("client")
            if self._in_poll and client is not None:
                if self._fetching:  # the server may never see what was sent to it
                    self.lease.give_back(self._sent_acks)
                self._in_poll, self._fetching = None, False
                client.connection.disconnect()
            if self._lease is not None:
                self._buffer.clear()
                self._lease.close(self.qos.running())
                self.qos._flush()
                self.qos._delivered.clear()
        super().close()
