"""What is enqueued in a chaos run, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Delays, in seconds, of the job that is retried; one that fails more often is kept as failed.
RETRY_DELAYS: Final = [0.5, 1.0, 1.5]

#: How often each kind is drawn, in percent. `far` and `cancelled` are jobs `delayed`; a signal's
#: handler sends the `interrupting` ones, jobs `immediate`, in the middle of another one's sending.
KINDS: Final[dict[str, float]] = {
    "immediate": 35,
    "interrupting": 4,
    "delayed": 26,
    "failing": 8,
    "retrying": 8,
    "long": 0.5,
    "keyed": 11,
    "cancelled": 7,
    "far": 0.5,
}

#: Seconds until a `far` job is due, which still waits when the run is over.
FAR: Final = 366 * 86_400.0

_KEYS: Final = 20
_LONGEST_DELAY: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One job to enqueue.

    Attributes:
        n: its number, which its payload carries and by which it is accounted for.
        at: when to send it, in seconds since the run began.
        kind: one of `KINDS`.
        delay: seconds until it is due; None: now.
        seconds: how long it takes.
        times: how often it raises RetryError.
        key: the key that it waits under.
        if_waiting: what becomes of it if another one waits under that key.
        cancel_after: seconds after which it is cancelled, counted from its sending.
    """

    n: int
    at: float
    kind: str
    delay: float | None = None
    seconds: float = 0.0
    times: int = 0
    key: str | None = None
    if_waiting: str = "replace"
    cancel_after: float | None = None

    @property
    def job(self) -> str:
        """The name of the job."""
        other = {"cancelled": "delayed", "far": "delayed", "interrupting": "immediate"}
        return other.get(self.kind, self.kind)

    @property
    def fails(self) -> str | None:
        """For what reason it shall be kept as failed; None if it shall not."""
        if self.kind == "failing":
            return "exception"
        return "retries exhausted" if self.times > len(RETRY_DELAYS) else None


def orders(seed: int, seconds: float, rate: float) -> Iterator[Order]:
    """Draw the jobs of a run.

    Args:
        seed: the same one draws the same jobs.
        seconds: how long the run is.
        rate: jobs per second.
    """
    draw = random.Random(f"orders {seed}")
    longest = min(_LONGEST_DELAY, seconds / 6)  # a short run shall not wait for long
    for n in range(int(seconds * rate)):
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
        at = n / rate
        delay = draw.uniform(0.1, longest)
        match kind:
            case "immediate" | "interrupting" | "failing":
                yield Order(n=n, at=at, kind=kind)
            case "delayed":
                yield Order(n=n, at=at, kind=kind, delay=delay)
            case "retrying":
                yield Order(n=n, at=at, kind=kind, times=draw.randint(1, len(RETRY_DELAYS) + 1))
            case "long":
                yield Order(n=n, at=at, kind=kind, seconds=draw.uniform(2, 8))
            case "keyed":
                key, rule = f"k{draw.randrange(_KEYS)}", draw.choice(["replace", "replace", "keep"])
                soon = draw.uniform(0.3, 3)
                yield Order(n=n, at=at, kind=kind, delay=soon, key=key, if_waiting=rule)
            case "cancelled":
                after = draw.uniform(0, 1.1 * delay)  # now and then too late
                yield Order(n=n, at=at, kind=kind, delay=delay, cancel_after=after)
            case "far":
                yield Order(n=n, at=at, kind=kind, delay=FAR + draw.uniform(0, 1000))
