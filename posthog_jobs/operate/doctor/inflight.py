"""Messages that nobody holds any more, and that are not back in their queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.operate.doctor.findings import fail, ok, warn
from posthog_jobs.operate.doctor.search import search

if TYPE_CHECKING:
    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.operate.doctor.findings import Finding

#: Seconds after the end of a lease within which a living worker has put its messages back.
GRACE: Final = 30


def in_flight(client: Any, keys: Keys, *, stock_timeout: float, workers: bool) -> Finding:
    """Look for messages that are stuck in flight.

    Args:
        client: of the broker.
        keys: its key names.
        stock_timeout: seconds after which what a stock worker left is put back.
        workers: whether any worker runs.
    """
    found, complete = search(client, keys.inflight(""))
    leases = {
        owner.decode(): end / 1000
        for owner, end in client.zrange(keys.leases, 0, -1, withscores=True)
    }
    seconds, _ = client.time()
    held = {owner: client.hlen(keys.inflight(owner)) for owner in found | set(leases)}
    orphans = {owner: count for owner, count in held.items() if count and owner not in leases}
    if orphans:
        return fail(
            "in flight",
            f"messages whose owner has no lease, so that nobody puts them back: "
            f"{sum(orphans.values()):,} (owner {', '.join(sorted(orphans)[:5])})",
            f"Run redis-cli ZADD {keys.leases} 0 OWNER for each: then a worker puts them back",
        )
    ended = {owner: seconds - end for owner, end in leases.items() if held[owner] and end < seconds}
    stock = client.zcount(keys.unacked_index, "-inf", seconds - stock_timeout - GRACE)
    stuck = sum(held[owner] for owner in ended) + stock
    late = max([*ended.values(), 0]) > GRACE or stock
    if stuck and not workers:
        return warn(
            "in flight",
            f"messages of workers that died: {stuck:,}",
            "Start a worker, which puts them back: celery -A posthog_jobs worker",
        )
    if stuck and late:
        return fail(
            "in flight",
            f"messages of workers that died, and not back in their queues: {stuck:,}",
            "Look at the workers' logs for errors of Redis",
        )
    count = sum(held.values())
    scope = "" if complete else " (too many keys to look for more than those under leases)"
    detail = f"messages, each held by a worker: {count:,}" if count else "nothing"
    return ok("in flight", f"{detail}{scope}")
