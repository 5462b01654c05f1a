"""The checks: each judges one thing, and names what mends it."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final

from posthog_jobs.broker.rabbitmq import LONGEST_DELAY
from posthog_jobs.operate.doctor.asked import GRACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.operate.doctor.asked import Asked
    from posthog_jobs.operate.doctor.server import Server

#: The oldest server whose commands our scripts use (HRANDFIELD, RPOP with a count, ZADD LT).
_OLDEST_REDIS: Final = (6, 2)

#: Share of the memory below which what is left is worth a word, and below which it is short.
_MEMORY_WARN: Final = 0.20
_MEMORY_FAIL: Final = 0.05

#: Seconds from which a clock that is off is worth a word, and from which jobs run at wrong times.
_CLOCK_WARN: Final = 1.0
_CLOCK_FAIL: Final = 60.0

#: Seconds below which a pause of a process lets its lease end, and above which a dead worker's
#: jobs wait for long.
_SHORTEST_LEASE: Final = 15
_LONGEST_LEASE: Final = 3600

#: How late the head of the schedule may be before that is worth a word, and before it fails.
_LATE_WARN: Final = timedelta(seconds=1)
_LATE_FAIL: Final = timedelta(seconds=60)

#: RabbitMQ's version → minutes that a message may be unacknowledged by default; newest first.
_CONSUMER_TIMEOUTS: Final = (((3, 8, 17), 30), ((3, 8, 15), 15))

#: The oldest version that knows the argument of a queue for that.
_TIMEOUT_PER_QUEUE: Final = (3, 11, 15)
_TIMEOUT_ARGUMENT: Final = "x-consumer-timeout"

_START: Final = "celery -A posthog_jobs worker"


class Verdict(Enum):
    """How bad a finding is."""

    #: As it should be.
    OK = "ok"
    #: Works, and will hurt some day; or could not be looked at.
    WARN = "warn"
    #: Jobs do not run, or may be lost.
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at, in a word or two, as the list of checks has it.
        verdict: how bad it is.
        detail: what was found, without a full stop; never a secret, a config or a payload.
        fix: what to do, without a full stop; empty when it is ok.
    """

    check: str = ""
    verdict: Verdict
    detail: str
    fix: str = ""


def ok(detail: str) -> Finding:
    """Find that all is as it should be."""
    return Finding(verdict=Verdict.OK, detail=detail)


def warn(detail: str, fix: str) -> Finding:
    """Find something that will hurt some day."""
    return Finding(verdict=Verdict.WARN, detail=detail, fix=fix)


def fail(detail: str, fix: str) -> Finding:
    """Find something by which jobs do not run, or may be lost."""
    return Finding(verdict=Verdict.FAIL, detail=detail, fix=fix)


# -- a Redis server -------------------------------------------------------------------------------


def version(server: Server) -> Finding:
    """Look at the server's version."""
    found = str(server.info.get("redis_version", "0"))
    if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < _OLDEST_REDIS:
        return fail(
            f"Redis {found} is too old: the transport's scripts need 6.2 or later",
            "Upgrade the server",
        )
    if "valkey_version" in server.info:
        return ok(f"Valkey {server.info['valkey_version']}, which speaks as Redis {found}")
    return ok(f"Redis {found}")


def persistence(server: Server) -> Finding:
    """Look at what the server keeps on disk, and whether it could write it last time."""
    info = server.info
    for file in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(file, "ok") != "ok":
            return fail(
                f"Redis could not write to its disk ({file} is {info[file]!r})",
                "Look at the server's log; see that its disk has room and is writable",
            )
    if info.get("aof_enabled"):
        return ok("append-only file")
    if saves := server.saves:
        return ok(
            f"snapshots alone (save {saves!r}): a killed server loses what came after the last one"
        )
    return fail(
        f"Redis keeps nothing on disk (appendonly no, save ''): a restart loses all {server.holds}",
        "Set appendonly yes",
    )


def eviction(server: Server) -> Finding:
    """Look at what the server deletes when its memory runs out."""
    policy = str(server.info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return ok("maxmemory-policy is 'noeviction'")
    takes_all = policy.startswith("allkeys")
    what = server.holds if takes_all else "keys with a time to live, such as those of meta.cache"
    judge = fail if takes_all and server.info.get("maxmemory") else warn
    return judge(
        f"maxmemory-policy is {policy!r}: when memory runs out, Redis deletes {what}",
        "Set maxmemory-policy noeviction",
    )


def memory(server: Server) -> Finding:
    """Look at what is left of the memory.

    What waits is in memory already; what comes due grows when it moves to its queue.
    """
    info, size, coming = server.info, server.job_size, server.due_within_an_hour
    used, most = int(info["used_memory"]), int(info.get("maxmemory") or 0)
    limit = most or int(info.get("total_system_memory") or 0)
    if not limit:
        return warn(f"{_bytes(used)} used; the server does not tell of how much", "Set maxmemory")
    growth = int(coming * size.growth)
    left = max(0, limit - used - growth)
    of = "maxmemory" if most else "the machine's memory (no maxmemory)"
    found = f"{_bytes(used)} used of {_bytes(limit)}, {of}"
    if growth > limit / 100:
        found += f"; the {coming:,} jobs due within the hour take {_bytes(growth)} more when queued"
    fitting = int(float(f"{left / size.waiting:.2g}"))
    found += f"; about {fitting:,} more jobs of {size.waiting:.0f} bytes fit"
    if left >= _MEMORY_WARN * limit:
        return ok(found)
    fix = "Raise maxmemory" if most else "Give the machine more memory"
    judge = fail if left < _MEMORY_FAIL * limit else warn
    return judge(found, f"{fix}; without memory, Redis refuses new jobs")


# -- RabbitMQ -------------------------------------------------------------------------------------


def rabbitmq_version(asked: Asked) -> Finding:
    """Name the server."""
    return ok(f"{asked.properties.get('product', 'RabbitMQ')} {asked.properties.get('version')}")


def consumer_timeout(asked: Asked) -> Finding:
    """Look at how long a job may run before RabbitMQ delivers it again.

    AMQP tells of a queue's argument alone: neither of the server's setting nor of policies.
    """
    numbers = re.findall(r"\d+", str(asked.properties.get("version")))[:3]
    found = tuple(int(number) for number in numbers)
    minutes = next((minutes for oldest, minutes in _CONSUMER_TIMEOUTS if found >= oldest), None)
    if minutes is None:
        return ok("none by default in this version")
    own = {
        name: int((queue.queue_arguments or {}).get(_TIMEOUT_ARGUMENT) or 0) / 1000
        for name, queue in asked.routed.items()
    }
    if own and all(own.values()):
        each = ", ".join(f"{seconds:,.0f} s in {name}" for name, seconds in own.items())
        return ok(f"a job may take, with its wait in a worker, {each}")
    per_queue = f" (or per queue: queue_arguments {{'{_TIMEOUT_ARGUMENT}': ms}})"
    return warn(
        f"a job that takes longer than consumer_timeout, with its wait in a worker, runs again; "
        f"{minutes} minutes unless the server is configured otherwise, which AMQP does not tell",
        "For longer jobs, raise consumer_timeout in rabbitmq.conf"
        f"{per_queue * (found >= _TIMEOUT_PER_QUEUE)}; and set worker_prefetch_multiplier = 1",
    )


def longest_delay(asked: Asked) -> Finding:
    """Say how long a job can wait."""
    if asked.delays_natively:
        return ok(f"2^28 - 1 s = {LONGEST_DELAY:,} s (8.5 years); more is refused")
    return warn(
        "delayed delivery is configured away: delayed jobs wait in the workers' memory",
        "Remove from the configuration what makes queues classic or exchanges direct",
    )


# -- the broker, whichever it is, and the workers -------------------------------------------------


def broker(asked: Asked) -> Finding:
    """Look whether the broker answers."""
    start = monotonic()
    uri = asked.answer()
    return ok(f"{uri} answers in {1000 * (monotonic() - start):.1f} ms")


def workers(asked: Asked) -> Finding:
    """Look at who answered."""
    crew, timeout = asked.crew, asked.timeout
    here = [f"{report.name} ({report.pool}, {report.concurrency})" for report in crew.reports]
    here += [f"{name} (of another app or version)" for name in crew.others]
    found = f"{len(here)} answered: {', '.join(here)}" if here else "none answered"
    if crew.silent:
        return warn(
            f"{found}; {crew.silent} more {'runs' if crew.silent == 1 else 'run'} jobs and did not "
            f"answer within {timeout:g} s (a solo pool does not while it runs a job)",
            "Look again later; use another pool for long jobs",
        )
    if not here:
        return fail(
            f"none answered within {timeout:g} s: no job runs",
            f"Start one: {_START}; or wait longer for slow ones",
        )
    return ok(found)


def apps(asked: Asked) -> Finding:
    """Look at the apps that cannot be loaded, here or in a worker."""
    where: dict[str, list[str]] = defaultdict(list)
    told = [(each.name, each.broken) for each in asked.crew.reports]
    for name, broken in [("here", asked.broken), *told]:
        for why in broken.values():
            where[why].append(name)
    if where:
        return fail(
            "; ".join(f"{why} ({', '.join(names)})" for why, names in where.items()),
            "Mend the app's code, or its entry in posthog_jobs_apps, and restart the worker",
        )
    return ok(f"{len(asked.installed)} installed, and each can be loaded here and in every worker")


def versions(asked: Asked) -> Finding:
    """Look at what should be the same in all workers."""
    reports = asked.crew.reports
    if not reports:
        return ok("no worker tells its own, so there is nothing to compare")
    differences = []
    for what in reports[0].versions:
        found = {report.name: report.versions.get(what) for report in reports}
        if len(set(found.values())) > 1:
            differences.append(f"{what}: {_each(found)}")
    places = {"here": asked.installed, **{report.name: report.installed for report in reports}}
    for app_id in sorted({app_id for place in places.values() for app_id in place}):
        installed = {
            name: f"version {place[app_id]}" if app_id in place else "not installed"
            for name, place in places.items()
        }
        if len(set(installed.values())) > 1:
            differences.append(f"app id {app_id!r}: {_each(installed)}")
    if differences:
        return warn(
            f"differ between workers: {'; '.join(differences)}",
            "Give all workers the same packages and configuration, and restart them",
        )
    same = ", ".join(f"{what} {version}" for what, version in reports[0].versions.items())
    return ok(f"{same}, and the same apps in all workers")


def clocks(asked: Asked) -> Finding:
    """Look at how far clocks are from Redis', which decides when a job is due."""
    skews = asked.skews
    who, worst = max(skews.items(), key=lambda item: abs(item[1]))
    if abs(worst) < _CLOCK_WARN:
        return ok(f"within {1000 * abs(worst):.0f} ms of the server's: {', '.join(skews)}")
    off = [
        f"{name} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        for name, skew in skews.items()
        if abs(skew) >= _CLOCK_WARN
    ]
    judge = fail if abs(worst) >= _CLOCK_FAIL else warn
    return judge(
        f"beside the server's clock, {', '.join(off)}: jobs that it sends run as much too "
        f"{'late' if worst > 0 else 'early'}",
        f"Synchronise the clock of {who} (NTP, chrony)",
    )


def lease(asked: Asked) -> Finding:
    """Look at the length of the leases; of what is configured here, where no worker answered."""
    reports = asked.crew.reports
    found = {each.name: each.lease_seconds for each in reports if each.lease_seconds is not None}
    lengths = set(found.values()) or {asked.lease_seconds}
    setting = "broker_transport_options = {'visibility_timeout': 60}"
    if len(lengths) > 1:
        return warn(
            f"workers have different ones: {_each(found, ' s')}",
            f"Configure all workers alike, such as {setting}",
        )
    (seconds,) = lengths
    if seconds < _SHORTEST_LEASE:
        return warn(
            f"{seconds:g} s: a worker that pauses for longer has its jobs run elsewhere too",
            f"Make it longer, such as {setting}",
        )
    if seconds > _LONGEST_LEASE:
        return warn(
            f"{seconds:g} s: so long a dead worker's jobs wait until they run elsewhere",
            f"Make it shorter, such as {setting}; a running job's lease is renewed all the while",
        )
    return ok(f"{seconds:g} s")


# -- what is on its way ---------------------------------------------------------------------------


def queues(asked: Asked) -> Finding:
    """Look for queues that nobody consumes; a worker that did not answer may consume any."""
    loads, consumed = asked.loads, asked.consumed
    idle = {name: of for name, of in loads.items() if name not in consumed and not of.consumers}
    if not idle:
        every = ", ".join(f"{name} ({of.messages:,} in it)" for name, of in loads.items())
        return ok(f"all consumed: {every}" if loads else "no app exports a job")
    listed = ", ".join(
        f"{name} ({of.messages:,} in it, {of.waiting:,} waiting for it)"
        for name, of in idle.items()
    )
    full = any(of.routed and (of.messages or of.waiting) for of in idle.values())
    judge = fail if full and not asked.crew.silent else warn
    return judge(
        f"no worker that answered consumes {listed}",
        f"Start a worker for {'it' if len(idle) == 1 else 'them'}: "
        f"{_START} -Q {','.join(idle)}; or change task_routes",
    )


def schedule(asked: Asked) -> Finding:
    """Look at how late the first job is that should have gone to its queue."""
    coming = asked.coming
    found = f"{coming.total:,} wait"
    if coming.late <= _LATE_WARN:
        return ok(f"{found}, and none is late")
    found += f", and the first is {coming.late.total_seconds():,.1f} s late"
    judge = fail if coming.late > _LATE_FAIL else warn
    if not asked.crew.is_there:
        return judge(f"{found}, for no worker runs", f"Start one: {_START}")
    return judge(
        f"{found}, though workers run",
        "Look at their logs for errors of Redis; see that the machines are not overloaded",
    )


def in_flight(asked: Asked) -> Finding:
    """Look for messages that nobody holds any more, and that are not back in their queues."""
    found = asked.in_flight
    orphans = {owner: n for owner, n in found.held.items() if n and owner not in found.ended}
    if orphans:
        return fail(
            f"messages whose owner has no lease, so that nobody puts them back: "
            f"{sum(orphans.values()):,} (owner {', '.join(sorted(orphans)[:5])})",
            f"Run redis-cli ZADD {asked.server.keys.leases} 0 OWNER for each: then a worker puts "
            "them back",
        )
    dead = [owner for owner, ago in found.ended.items() if ago > 0 and found.held[owner]]
    stuck = sum(found.held[owner] for owner in dead) + found.stock
    if stuck and not asked.crew.is_there:
        return warn(
            f"messages of workers that died: {stuck:,}",
            f"Start a worker, which puts them back: {_START}",
        )
    if found.stock or any(found.ended[owner] > GRACE for owner in dead):
        return fail(
            f"messages of workers that died, and not back in their queues: {stuck:,}",
            "Look at the workers' logs for errors of Redis",
        )
    count = sum(found.held.values())
    scope = "" if found.complete else " (too many keys to look for more than those under leases)"
    return ok((f"messages, each held by a worker: {count:,}" if count else "nothing") + scope)


def failed_jobs(asked: Asked) -> Finding:
    """Look at how many jobs failed within the last hour, and are neither replayed nor discarded."""
    if not (count := asked.recently_failed):
        return ok("none in the last hour")
    return warn(
        f"{count:,} in the last hour",
        "Look why (celery -A posthog_jobs jobs failed), mend it, and replay them (jobs replay)",
    )


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1000:  # noqa: PLR2004  # what three digits show
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _each(found: Mapping[str, object], unit: str = "") -> str:
    """Group names by what was found there."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, value in found.items():
        groups[value].append(name)
    return ", ".join(f"{value}{unit} on {' and '.join(names)}" for value, names in groups.items())
