"""The Redis server: how much of its memory is left, against what will be asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from posthog_jobs.broker.envelope import Record
from posthog_jobs.operate.doctor.findings import fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.operate.doctor.findings import Finding

#: Share of the memory below which what is left is worth a word, and below which it is short.
WARN_BELOW: Final = 0.20
FAIL_BELOW: Final = 0.05

#: Bytes that a job with a small payload takes while it waits; for where none waits.
USUAL: Final = 700
_SAMPLES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSize:
    """What a job takes of the server's memory.

    Attributes:
        waiting: bytes while it waits, with all that points to it.
        growth: bytes more once it is due, for in its queue its message is not packed.
    """

    waiting: float = USUAL
    growth: float = 0


def job_size(client: Any, keys: Keys) -> JobSize:
    """Measure some of the jobs that wait."""
    count = client.hlen(keys.waiting)
    if not count:
        return JobSize()
    try:
        waiting = client.memory_usage(keys.waiting, samples=_SAMPLES) / count
        partition = client.zrange(keys.heads, 0, 0)[0].decode()
        due = keys.due(partition)
        waiting += client.memory_usage(due, samples=_SAMPLES) / client.zcard(due)
    except (ResponseError, LookupError, TypeError, ZeroDivisionError):
        # MEMORY is forbidden, or what was to be measured has just left for its queue
        waiting = USUAL
    _, some = client.hscan(keys.waiting, count=_SAMPLES)
    lengths = [len(Record.parse(name.decode(), data).message) for name, data in some.items()]
    return JobSize(waiting=waiting, growth=max(0, sum(lengths) / max(1, len(lengths)) - waiting))


def memory(info: Mapping[str, Any], size: JobSize, coming: int = 0) -> Finding:
    """Look at what is left of the memory.

    What waits is in memory already; what comes due grows when it moves to its queue.

    Args:
        info: the server's reply to INFO.
        size: what a job takes.
        coming: how many are due within the hour.
    """
    used, most = int(info["used_memory"]), int(info.get("maxmemory") or 0)
    limit = most or int(info.get("total_system_memory") or 0)
    if not limit:
        return warn(
            "memory",
            f"{_bytes(used)} used; the server does not tell of how much",
            "Set maxmemory",
        )
    growth = int(coming * size.growth)
    left = max(0, limit - used - growth)
    of = "maxmemory" if most else "the machine's memory (no maxmemory)"
    found = f"{_bytes(used)} used of {_bytes(limit)}, {of}"
    if growth > limit / 100:
        found += f"; the {coming:,} jobs due within the hour take {_bytes(growth)} more when queued"
    found += f"; about {_rounded(left / size.waiting)} more jobs of {size.waiting:.0f} bytes fit"
    if left >= WARN_BELOW * limit:
        return ok("memory", found)
    fix = "Raise maxmemory" if most else "Give the machine more memory"
    judge = fail if left < FAIL_BELOW * limit else warn
    return judge("memory", found, f"{fix}; without memory, Redis refuses new jobs")


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1000:  # noqa: PLR2004  # what three digits show
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _rounded(count: float) -> str:
    return f"{int(float(f'{count:.2g}')):,}"
