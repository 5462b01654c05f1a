"""The account of a chaos run: what became of each job, and what must not have."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.chaos.duplicates import causes, without_gaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.chaos.backlog import Remains
    from tests.chaos.orders import Order
    from tests.chaos.runs import Run, Send
    from tests.chaos.storm import Hit

#: What may become of a job, in the order of the table's columns.
FATES: Final = (
    "ran",
    "failed",
    "lost too often",  # kept as failed, since its workers were killed again and again
    "not retried",  # kept as failed, since the broker was away when the retry was to be sent
    "waiting",
    "queued",  # only where the run was cut short
    "cancelled",
    "revoked",  # cancelled too late for the schedule, in time for the worker
    "replaced",  # by a later one with its key
    "not kept",  # since another one waited under its key
    "refused",  # the broker was away, and certainly does not have it
    "unknown",  # the broker's answer was lost, and it does not have it
    "lost",
)

_LOST_TOO_OFTEN: Final = "worker lost too often"

#: Seconds for which a retry is sent again while the broker is away, and a few for the rest.
_SENDING: Final = 8.0


@dataclass(slots=True, kw_only=True)
class Account:
    """What became of the jobs.

    Attributes:
        fates: (kind, fate) → how many.
        duplicates: cause → how many starts more than there were attempts.
        problems: what must not have happened, a sentence each.
        latenesses: when each job was started first (s since the epoch), and how late (s).
        early: how many jobs were started before they were due.
        uncertain: how many sends had no answer.
    """

    fates: Counter[tuple[str, str]] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    latenesses: list[tuple[float, float]] = field(default_factory=list)
    early: int = 0
    uncertain: int = 0

    def total(self, fate: str) -> int:
        """How many jobs of all kinds had this fate."""
        return sum(count for (_, other), count in self.fates.items() if other == fate)


def account(
    *,
    orders: Iterable[Order],
    sends: Mapping[int, Send],
    runs: Mapping[int, Sequence[Run]],
    remains: Remains,
    hits: Sequence[Hit],
) -> Account:
    """Account for every job that was enqueued.

    Args:
        orders: what was to be sent.
        sends: what was, by number.
        runs: what ran, by number; each job's first start first.
        remains: what the broker has at the end.
        hits: the faults.
    """
    found = Account()
    hits = without_gaps(hits)
    by_key: dict[str, Counter[str]] = defaultdict(Counter)
    for order in orders:
        if (send := sends.get(order.n)) is None:
            continue  # the run was cut short
        mine = runs.get(order.n, ())
        fate = _fate(order, send, mine, remains, hits)
        found.fates[order.kind, fate] += 1
        found.uncertain += send.status == "uncertain"
        wrong = [what for is_so, what in _wrongs(order, send, mine, remains, fate) if is_so]
        found.duplicates.update(repeated := causes(mine, hits))
        if repeated["none"]:
            wrong.append("was started twice, and no fault explains that")
        if late := _latenesses(send, mine):
            found.latenesses.append((mine[0].start, late[0]))
            if min(late) < 0:
                found.early += 1
                wrong.append("ran early")
        found.problems += [f"job {order.n} ({order.kind}) {what}: {send} {mine}" for what in wrong]
        if order.key is not None:
            by_key[order.key].update((f"said {send.status}", fate))
    for name in runs.keys() - sends.keys():
        found.problems.append(f"job {name} ran and was never sent")
    found.problems += _unbalanced(by_key)
    found.latenesses.sort()
    return found


def _fate(
    order: Order, send: Send, runs: Sequence[Run], remains: Remains, hits: Sequence[Hit]
) -> str:
    """Tell what became of a job."""
    if (reason := remains.failed.get(order.n)) is not None:
        if reason == "exception" and order.kind == "retrying" and _could_not_send(runs, hits):
            return "not retried"
        return "lost too often" if reason == _LOST_TOO_OFTEN else "failed"
    if remains.waiting[order.n]:
        return "waiting"
    if remains.queued[order.n]:
        return "queued"
    if runs:
        return "ran" if _is_done(runs) else "lost"
    return _absent(order, send)


def _could_not_send(runs: Sequence[Run], hits: Sequence[Hit]) -> bool:
    """Whether the broker was away when a run asked for another one."""
    return any(
        run.outcome == "retry"
        and run.end <= (hit.end or run.end)
        and hit.begin < run.end + _SENDING
        for hit in hits
        if hit.kind == "restart"
        for run in runs
        if run.end is not None
    )


def _wrongs(
    order: Order, send: Send, runs: Sequence[Run], remains: Remains, fate: str
) -> Iterable[tuple[bool, str]]:
    """Tell what must not have happened to a job, and whether it has."""
    waiting, queued = remains.waiting[order.n], remains.queued[order.n]
    reason = remains.failed.get(order.n)
    there = bool(waiting or queued or runs or reason)
    yield waiting > 1 or bool(waiting and queued), f"waits {waiting + queued} times"
    yield bool(waiting and (_is_done(runs) or reason)), "waits, and has ended"
    yield fate == "failed" and reason != order.fails, f"failed: {reason}"
    yield reason not in (None, _LOST_TOO_OFTEN) and _is_done(runs), f"is done and failed: {reason}"
    yield send.status == "refused" and there, "was refused for certain, and is there"
    yield send.status == "kept" and there, "gave way to what waited under its key, and is there"
    yield send.cancelled == "cancelled" and there, "was cancelled, and is there"
    yield order.kind == "far" and bool(runs), "ran a year early"
    yield fate == "lost", "is lost"


def _is_done(runs: Sequence[Run]) -> bool:
    return any(run.outcome == "done" for run in runs)


def _absent(order: Order, send: Send) -> str:
    """Tell why a job neither ran nor is anywhere."""
    if send.status in ("refused", "kept", "uncertain"):
        return {"refused": "refused", "kept": "not kept", "uncertain": "unknown"}[send.status]
    if send.cancelled is not None:
        return "cancelled" if send.cancelled == "cancelled" else "revoked"
    return "lost" if order.key is None else "replaced"


def _latenesses(send: Send, runs: Sequence[Run]) -> list[float]:
    """Return by how many seconds each start was late; that of the first attempt first."""
    late = []
    for run in runs:
        due = send.due if run.attempt == 1 else run.due
        if due is not None:
            late.append(run.start - due / 1000)
    return late


def _unbalanced(by_key: Mapping[str, Counter[str]]) -> Iterable[str]:
    """Compare how many jobs of a key are gone with how many the broker said it replaced."""
    for key, counts in by_key.items():
        gone, said, may_have = counts["replaced"], counts["said replaced"], counts["said uncertain"]
        if not said <= gone + may_have or not gone <= said + may_have:
            yield f"of key {key}, {gone} jobs are gone, and {said} were replaced: {dict(counts)}"
