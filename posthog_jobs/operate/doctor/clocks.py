"""How far the clocks of workers and clients are from Redis', which decides when a job is due."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.operate.doctor.findings import fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.operate.doctor.findings import Finding

#: Seconds from which a clock that is off is worth a word, and from which jobs run at wrong times.
WARN_FROM: Final = 1.0
FAIL_FROM: Final = 60.0

_SAMPLES: Final = 3


def measure(client: Any) -> float:
    """Return by how many seconds this process' clock is ahead of the server's.

    The server's `TIME` is taken for the middle of the round trip, and the fastest of a few round
    trips counts. What may be due to the round trip itself is no skew.

    Raises:
        redis.exceptions.RedisError: the server does not answer.
    """
    best, skew = float("inf"), 0.0
    for _ in range(_SAMPLES):
        before = time()
        seconds, micros = client.time()
        after = time()
        if after - before < best:
            best = after - before
            skew = (before + after) / 2 - (seconds + micros / 1e6)
    off = max(0.0, abs(skew) - best / 2)
    return off if skew > 0 else -off


def clocks(skews: Mapping[str, float]) -> Finding:
    """Judge the clocks.

    Args:
        skews: who → by how many seconds its clock is ahead of the broker's.
    """
    who, worst = max(skews.items(), key=lambda item: abs(item[1]))
    if abs(worst) < WARN_FROM:
        return ok(
            "clocks", f"within {1000 * abs(worst):.0f} ms of the server's: {', '.join(skews)}"
        )
    off = [
        f"{name} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        for name, skew in skews.items()
        if abs(skew) >= WARN_FROM
    ]
    judge = fail if abs(worst) >= FAIL_FROM else warn
    return judge(
        "clocks",
        f"beside the server's clock, {', '.join(off)}: jobs that it sends run as much too "
        f"{'late' if worst > 0 else 'early'}",
        f"Synchronise the clock of {who} (NTP, chrony)",
    )
