"""One message on its way to the broker, over all the attempts to bring it there.

A reply that is lost with its connection leaves a publisher in doubt. The server keeps, for each
sender, what it took from it last, so that the next attempt is told that it has it already.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import contextmanager
from itertools import count
from ssl import SSLEOFError, SSLError, SSLZeroReturnError
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final, Self
from uuid import uuid4

from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from posthog_jobs.broker.transport.refusals import RefusedError
from posthog_jobs.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from posthog_jobs.broker.transport.outcome import Outcome


#: Seconds before the next attempt after a refusal: how much longer from one to the next, at most.
_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 1.0


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
        self.around = being_sent()
        _local.sending = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _local.sending = self.around
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
#: Not a context variable: those are handed on to other threads, and to what they send.
_local: Final = threading.local()
_process = uuid4().hex


def _after_fork() -> None:
    global _process  # noqa: PLW0603  # a child is another sender than its parent
    _process = uuid4().hex
    _names.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def attempting() -> Iterator[Sending | None]:
    """Make an attempt to send what this thread is sending now, if anything; note why it fails."""
    message = being_sent()
    try:
        yield message
    except BaseException as error:
        if message is not None:
            message.failed(error)
        raise


def being_sent() -> Sending | None:
    """Return what this thread is sending now."""
    return getattr(_local, "sending", None)


@contextmanager
def publishing() -> Iterator[None]:
    """Turn what a publish raises into our own error.

    Raises:
        BrokerUnavailableError: the broker did not take the message, or refuses it.
    """
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        raise BrokerUnavailableError(
            f"the broker did not take a message: {error}; see that it runs, and that broker_url is "
            "right"
        ) from error
