"""Whether the broker is reached: one error for all that Redis' client and kombu may raise."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from posthog_jobs.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn what Redis' client and kombu raise into our own error.

    Raises:
        BrokerUnavailableError: the broker does not answer, or refuses the call.
    """
    try:
        yield
    except (RedisError, KombuError, OSError) as error:
        raise BrokerUnavailableError(
            f"the broker does not answer: {error}; see that it runs, and that broker_url is right"
        ) from error


def reaching_broker(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method raise BrokerUnavailableError, as `unavailable` does."""

    @wraps(method)
    def reaching(*args: P.args, **kwargs: P.kwargs) -> T:
        with unavailable():
            return method(*args, **kwargs)

    return reaching
