"""A message on its way to the broker, over all the attempts to bring it there.

A reply that is lost with its connection leaves a publisher in doubt. The server keeps, for each
sender, what it took from it last, so that the next attempt is told that it has it already.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from ssl import SSLEOFError, SSLError, SSLZeroReturnError
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self
from uuid import uuid4

from amqp.exceptions import AMQPError, MessageNacked
from celery.app.amqp import AMQP
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from posthog_jobs.broker import envelope, scripts
from posthog_jobs.broker.transport.connection import RefusedError
from posthog_jobs.errors import BrokerUnavailableError
from posthog_jobs.jobs.execution import after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from celery import Celery

    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.broker.transport.connection import Connection
#: What sending raises where the broker does not take a message: on Redis, or on RabbitMQ.
NOT_TAKEN: Final = (KombuError, RedisError, OSError, AMQPError, MessageNacked)

#: Seconds before the next attempt after a refusal: how much longer from one to the next, at most.
_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The broker's answer to one publish.

    Attributes:
        status: `scheduled`, `replaced` (what waited under its key), `kept` (what waited under its
            key, so this message was not stored), or `queued` (it was due).
        id: task id of what waits now.
    """

    status: Literal["scheduled", "replaced", "kept", "queued"]
    id: str


class Sending:
    """One message on its way; what is sent meanwhile, as by a signal's handler, is another one.

    Attributes:
        id: its task id.
        around: what this thread was sending when this one began.
        name: what the server keeps under that it took this one; no other one has it meanwhile.
        token: which of those that have, or had, the name it is.
        unanswered: whether the broker may have it, since a command was sent and its reply is lost.
        outcome: what became of it, if it went through the schedule.
    """

    __slots__ = (
        "_error", "_has_paused", "_pause", "_tried", "_until", "around", "id", "name", "outcome",
        "token", "unanswered",
    )  # fmt: skip

    def __init__(self, task_id: str, seconds: float) -> None:
        """Begin to send.

        Args:
            task_id: of the message.
            seconds: after which no further attempt is made.
        """
        self._until = monotonic() + seconds
        self.id = task_id
        self.around: Sending | None = None
        self.token = str(next(_tokens))
        try:
            self.name = _names.pop()
        except IndexError:
            self.name = f"{_process}-{self.token}"
        self._tried = False
        self._error: BaseException | None = None
        self._has_paused, self._pause = False, 0.0
        self.unanswered = False
        self.outcome: Outcome | None = None

    def __enter__(self) -> Self:
        self.around = this_thread.sending
        this_thread.sending = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        this_thread.sending = self.around
        if not self.unanswered:  # else its command may still be under way
            _names.append(self.name)

    def attempt(self) -> None:
        """Note an attempt.

        Raises:
            SendingTimeoutError: the time is over. It is no connection's error, so that kombu's
                retry policy ends with it.
        """
        again, self._tried = self._tried, True
        if again:
            self.check()

    def check(self) -> None:
        """Raise SendingTimeoutError when the time for further attempts is over.

        There is time for a first one, however long a busy process takes to come to it. Before one
        that follows a refusal it waits: kombu itself waits only where it cannot connect.
        """
        is_further = self._tried or self._error is not None
        if is_further and monotonic() > self._until:
            raise SendingTimeoutError(str(self._error or "it did not answer in time"))
        if isinstance(self._error, RefusedError) and not self._has_paused:
            self._has_paused = True
            self._pause = min(self._pause + _PAUSE, _LONGEST_PAUSE)
            sleep(max(0.0, min(self._pause, self._until - monotonic())))

    def failed(self, error: BaseException) -> None:
        """Note why an attempt failed.

        Raises:
            SendingRefusedError: the next one would fail for the same reason.
        """
        self._error, self._has_paused = error, False
        if _is_refusal(error):
            raise SendingRefusedError(str(error)) from error


class SendingTimeoutError(OperationalError):
    """The broker did not take a message in the time that it had."""


class SendingRefusedError(OperationalError):
    """The broker answers, and refuses the login, the TLS handshake or the command."""


def is_away(error: BaseException) -> bool:
    """Tell whether what sending raised says that the broker is away, and not that it refuses."""
    return not isinstance(error, SendingRefusedError | ResponseError) and not isinstance(
        error.__cause__, ResponseError
    )


def _is_refusal(error: BaseException) -> bool:
    # redis-py has an error of the handshake as the context of its own
    handshake = error.__cause__ or error.__context__
    return isinstance(error, AuthenticationError | ResponseError) or (
        # a server that goes down may do so in the middle of a handshake
        isinstance(handshake, SSLError)
        and not isinstance(handshake, SSLEOFError | SSLZeroReturnError)
    )


_tokens: Final = count(1)
#: Names that are free again. Its methods are single steps, which no signal's handler interrupts.
_names: Final = deque[str]()
_process = uuid4().hex


class _Thread(threading.local):
    #: What this thread is sending now.
    sending: Sending | None = None


#: Not a context variable: those are handed on to other threads, and to what they send.
this_thread: Final = _Thread()


def _forget_parent() -> None:
    global _process  # noqa: PLW0603  # a child is another sender than its parent
    _process = uuid4().hex
    _names.clear()


after_fork(_forget_parent)


@contextmanager
def attempting() -> Iterator[Sending | None]:
    """Make an attempt to send what this thread is sending now, if anything; note why it fails."""
    message = this_thread.sending
    try:
        yield message
    except BaseException as error:
        if message is not None:
            message.failed(error)
        raise


class _Place(NamedTuple):
    """The keys of what writes into one list, in the order of `schedule.lua` and `enqueue.lua`."""

    schedule: list[str]
    queue: list[str]


class Writer:
    """Writes messages for a channel: into a queue, or into the schedule.

    Args:
        keys: the transport's key names.
    """

    __slots__ = ("_place", "_prefix", "_sent")

    def __init__(self, keys: Keys) -> None:
        def place(name: str) -> _Place:
            queue = keys.queue(name)
            return _Place([*keys.fixed, queue], [queue, keys.wake(name)])

        self._prefix = keys.prefix
        self._place = lru_cache(maxsize=1000)(place)
        self._sent = lru_cache(maxsize=1000)(keys.sent)

    def write(
        self, connection: Connection, name: str, message: dict[str, Any], batch: Any = None
    ) -> None:
        """Put a message that is due later, or has a key, into the schedule, else into its queue.

        Args:
            connection: sends the command.
            name: the list that the message belongs into, of its queue and priority.
            message: what kombu made of it.
            batch: what the command is added to instead of being sent, where kombu publishes
                several messages at once.

        Raises:
            ConfigurationError: workers could not unpack the message.
        """
        place, due, args = self._place(name), *envelope.outgoing(message, int(time() * 1000))
        if due is None:
            script, keys = scripts.ENQUEUE, place.queue
        else:
            script, keys, args = scripts.SCHEDULE, place.schedule, [self._prefix, *args]
        if batch is not None:
            batch.add("eval", script.text, len(keys), *keys, *args)
            return
        sending = this_thread.sending
        if sending is None or (message.get("headers") or {}).get("id") != sending.id:
            # it is sent without Celery
            script(connection, keys, args)
            return
        sent = self._sent(sending.name, name)
        with attempting():
            sending.attempt()
            try:
                reply = script(connection, [*keys, sent], [*args, "sent", sending.token])
            finally:
                sending.unanswered = sending.unanswered or connection.unanswered
        if reply is not None:
            status, kept = reply
            sending.outcome = Outcome(status.decode(), kept.decode())

    def postpone(
        self,
        connection: Connection,
        name: str,
        message: dict[str, Any],
        due: int,
        held: tuple[str, str],
    ) -> None:
        """Move a message that was fetched before its time into the schedule.

        Args:
            connection: sends the command.
            name: the list that it goes to when it is due.
            message: as it was fetched.
            due: when that is, in ms since the epoch.
            held: the in-flight hash that it is in, and its tag there.
        """
        inflight, tag = held
        args = [self._prefix, *envelope.scheduled(message, due), "held", tag]
        scripts.SCHEDULE(connection, [*self._place(name).schedule, inflight], args)


@contextmanager
def publishing() -> Iterator[None]:
    """Turn what a publish raises into our own error.

    Raises:
        BrokerUnavailableError: the broker did not take the message, or refuses it.
    """
    try:
        yield
    except NOT_TAKEN as error:
        raise BrokerUnavailableError(
            f"the broker did not take a message: {error}; see that it runs, and that broker_url is "
            "right"
        ) from error


_HOSTNAME: Final = socket.gethostname()


class MessageMaker(AMQP):
    """Celery's maker of messages, without its lock that a signal's handler could wait for."""

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self._making = threading.RLock()
        self._made: Any = None

    @property
    def producer_pool(self) -> Any:
        """The pool; Celery would set its limit, of two first sends at once, while one uses it."""
        if self._made is None or self._made is not self._producer_pool:
            with self._making:
                self._made = super().producer_pool
        return self._made

    def as_task_v2(self, *arguments: Any, **options: Any) -> Any:
        """Make a message; Celery would look up this host's name, each time, under the lock."""
        options.setdefault("origin", anon_nodename(_HOSTNAME))
        return super().as_task_v2(*arguments, **options)


class SpareProducers:
    """Producers for what is sent while another message is being sent, as by a signal's handler.

    They are none of a pool's, all of which may belong to who waits for it, and there is no lock,
    which might be what the handler interrupted.
    """

    __slots__ = ("__weakref__", "_connect", "_parents", "_spares")

    def __init__(self, connect: Callable[[], Any]) -> None:
        """Connect to nothing yet.

        Args:
            connect: gives a connection of kombu's to send over.
        """
        self._connect: Final = connect
        self._spares: deque[Any] = deque()
        self._parents: Final[list[deque[Any]]] = []
        after_fork(self._forget_parent)

    @contextmanager
    def acquire(self) -> Iterator[Any]:
        """Give a producer that nobody else uses meanwhile."""
        try:
            producer = self._spares.pop()
        except IndexError:
            producer = self._connect().Producer()
        try:
            yield producer
        except BaseException:
            producer.connection.release()
            raise
        self._spares.append(producer)

    def _forget_parent(self) -> None:
        # kept, for to let go of the parent's connections may be to close them
        self._parents.append(self._spares)
        self._spares = deque()
