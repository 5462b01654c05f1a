"""Why a job was started twice: only a fault that met its worker meanwhile explains that."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tests.chaos.site import LEASE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.runs import Run
    from tests.chaos.storm import Hit

#: Seconds within which a job that has ended is acknowledged; 5 ms on a machine that is not busy.
ACKNOWLEDGED: Final = 3.0
#: Seconds that a worker may need to connect again once its server is back; 4 where it is not busy.
CONNECTED: Final = 15.0
#: Seconds that a worker may hold a job that it has fetched and not started: behind long ones.
HELD: Final = 32.0
#: Seconds after the last renewal of a lease that a stop can begin, at most; see `lease.py`.
RENEWED: Final = 1.25

_FOREVER: Final = float("inf")


def without_gaps(hits: Sequence[Hit]) -> Sequence[Hit]:
    """Let each fault begin with the one before it, if that left its target no time to act."""
    found: list[Hit] = []
    last: dict[tuple[str, int], Hit] = {}
    for hit in sorted(hits, key=lambda hit: hit.begin):
        before = last.get((hit.target, hit.group))
        if before is not None and hit.kind == "kill" and hit.begin - _end(before) < ACKNOWLEDGED:
            hit = replace(hit, begin=before.begin)  # noqa: PLW2901  # as it is to be judged
        last[hit.target, hit.group] = hit
        found.append(hit)
    return found


def causes(runs: Sequence[Run], hits: Sequence[Hit]) -> Counter[str]:
    """Tell why a job was started more often than it was attempted.

    Args:
        runs: all starts of one job, the first one first.
        hits: all faults.

    Returns:
        Cause → how many starts it explains: a kind of fault; `earlier`, an attempt before that
        ran twice, and asked twice for the next one; or `none`.
    """
    attempts: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        attempts[run.attempt].append(run)
    found: Counter[str] = Counter()
    for number, some in attempts.items():
        asked = sum(run.outcome == "retry" for run in attempts.get(number - 1, ()))
        for position in range(1, len(some)):
            reasons = (explain(before, some[position], hits) for before in some[:position])
            why = next(filter(None, reasons), None)
            if why is None and asked > position:
                why = "earlier"
            found[why or "none"] += 1
    return found


def explain(first: Run, second: Run, hits: Sequence[Hit]) -> str | None:
    """Name the fault by which the second start of an attempt came about, or None.

    One of the two is of the message that was put back, and says so; the other one is of the
    message as a worker had it in flight when a fault met that worker.
    """
    for kind, rule in _RULES.items():
        if any(hit.kind == kind and rule(first, second, hit) for hit in hits):
            return kind
    return None


def _killed(first: Run, second: Run, hit: Hit) -> bool:
    mine = first.group == hit.group
    return mine and second.redelivered and _held(first, hit.begin, _end(hit))


def _stopped(first: Run, second: Run, hit: Hit) -> bool:
    """Whether the lease ended meanwhile; whichever copy the stopped worker had."""
    if _end(hit) - hit.begin < LEASE - RENEWED:
        return False
    since = hit.begin + LEASE - RENEWED
    return any(
        mine.group == hit.group
        and _held(mine, hit.begin, _end(hit) + HELD)
        and other.redelivered
        and other.start >= since
        for mine, other in ((first, second), (second, first))
    )


def _cut_off(first: Run, second: Run, hit: Hit) -> bool:
    """Whether the first worker could not acknowledge, or the second one held on to its copy."""
    if second.redelivered:
        ended = first.end is not None  # only a kill leaves one without
        return ended and _held(first, hit.begin, _end(hit) + CONNECTED)
    return first.redelivered and hit.begin <= first.start and second.start <= _end(hit) + HELD


#: Kind of fault → whether it explains a second start; the most exact rule comes first.
_RULES: Final = {
    "kill": _killed,
    "hung": _killed,
    "stop": _stopped,
    "restart": _cut_off,
    "refuse": _cut_off,
    "full": _cut_off,
}


def _end(hit: Hit) -> float:
    return _FOREVER if hit.end is None else hit.end


def _held(run: Run, begin: float, end: float) -> bool:
    """Whether a worker had this message in flight at a time between two."""
    return run.start <= end and (run.end is None or run.end >= begin - ACKNOWLEDGED)
