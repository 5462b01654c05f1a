"""The workers: who answers, what they run, what cannot be loaded there, and their leases."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.broker.transport import OPTION
from posthog_jobs.operate.doctor.findings import fail, ok, warn
from posthog_jobs.operate.doctor.report import COMMAND, WorkerReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from celery import Celery
    from kombu import Connection

    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.operate.doctor.findings import Finding

#: How to start a worker.
START: Final = "Start one: celery -A posthog_jobs worker"

#: Length, in seconds, below which a pause of a process lets its lease end, and above which a dead
#: worker's jobs wait for long.
SHORTEST_LEASE: Final = 15
LONGEST_LEASE: Final = 3600

#: Transport options of a connection that only listens; the interval is in seconds, and as long
#: as it takes to close.
_BYSTANDER: Final = {OPTION: False, "visibility_timeout": 10**12, "polling_interval": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The workers of a broker, as far as they can be seen from here.

    Attributes:
        reports: of those that answered.
        others: names of those that answered, and have no such command.
        silent: leases that are alive and hold jobs, and whose owner did not answer.
    """

    reports: tuple[WorkerReport, ...]
    others: tuple[str, ...]
    silent: int

    @property
    def is_there(self) -> bool:
        """Whether anybody may be running jobs."""
        return bool(self.reports or self.others or self.silent)


@contextmanager
def bystander(app: Celery) -> Iterator[Connection]:
    """A connection that only listens.

    One with our transport would promote and put back while it waits for answers, and so mend what
    the doctor is to see. One with kombu's own would put back what stock workers hold, once they do
    for as long as our lease: hence the endless timeout.
    """
    with app.connection_for_write() as connection:
        given = connection.transport_options
        if OPTION in given:
            connection.transport_options = {**given, **_BYSTANDER}
        yield connection


def call(app: Celery, client: Any, keys: Keys | None, *, timeout: float) -> Crew:
    """Ask all workers for their report, and wait for the answers until the timeout.

    Args:
        app: the Celery app.
        client: of the broker, if that is Redis.
        keys: its key names.
        timeout: seconds.
    """
    holding = set() if keys is None else holders(client, keys)  # before, for some will have ended
    with bystander(app) as connection:
        replies = app.control.broadcast(COMMAND, connection=connection, reply=True, timeout=timeout)
    answers = [answer for reply in replies or [] for answer in reply.items()]
    reports = [WorkerReport.parse(name, answer) for name, answer in answers]
    if keys is not None:
        holding &= holders(client, keys)
    return Crew(
        reports=tuple(
            sorted((report for report in reports if report), key=lambda report: report.name)
        ),
        others=tuple(
            name for (name, _), report in zip(answers, reports, strict=True) if report is None
        ),
        silent=len(holding - {report.lease for report in reports if report}),
    )


def holders(client: Any, keys: Keys) -> set[str]:
    """Return the owners of leases that are alive and hold messages.

    A lease that holds nothing may be that of any process that waits for a reply.
    """
    seconds, _ = client.time()
    owners = [
        owner.decode() for owner in client.zrange(keys.leases, seconds * 1000, "+inf", byscore=True)
    ]
    pipe = client.pipeline(transaction=False)
    for owner in owners:
        pipe.exists(keys.inflight(owner))
    return {owner for owner, holds in zip(owners, pipe.execute(), strict=True) if holds}


def answering(crew: Crew, timeout: float) -> Finding:
    """Look at who answered."""
    here = [f"{report.name} ({report.pool}, {report.concurrency})" for report in crew.reports]
    here += [f"{name} (of another app or version)" for name in crew.others]
    found = f"{len(here)} answered: {', '.join(here)}" if here else "none answered"
    if crew.silent:
        return warn(
            "workers",
            f"{found}; {crew.silent} more {'runs' if crew.silent == 1 else 'run'} jobs and did not "
            f"answer within {timeout:g} s (a solo pool does not while it runs a job)",
            "Look again later; use another pool for long jobs",
        )
    if not here:
        return fail(
            "workers",
            f"none answered within {timeout:g} s: no job runs",
            f"{START}; or wait longer for slow ones",
        )
    return ok("workers", found)


def leases(crew: Crew, configured: float) -> Finding:
    """Look at the length of the leases.

    Args:
        crew: the workers.
        configured: what counts where none answered, in seconds.
    """
    found = {
        report.name: report.lease_seconds
        for report in crew.reports
        if report.lease_seconds is not None
    }
    lengths = set(found.values()) or {configured}
    setting = "broker_transport_options = {'visibility_timeout': 60}"
    if len(lengths) > 1:
        return warn(
            "lease",
            f"workers have different ones: {_each(found, ' s')}",
            f"Configure all workers alike, such as {setting}",
        )
    (seconds,) = lengths
    if seconds < SHORTEST_LEASE:
        return warn(
            "lease",
            f"{seconds:g} s: a worker that pauses for longer has its jobs run elsewhere too",
            f"Make it longer, such as {setting}",
        )
    if seconds > LONGEST_LEASE:
        return warn(
            "lease",
            f"{seconds:g} s: so long a dead worker's jobs wait until they run elsewhere",
            f"Make it shorter, such as {setting}; a running job's lease is renewed all the while",
        )
    return ok("lease", f"{seconds:g} s")


def apps(crew: Crew, broken: Mapping[str, str], count: int) -> Finding:
    """Look at the apps that cannot be loaded, here or in a worker.

    Args:
        crew: the workers.
        broken: app id → why, in this process.
        count: how many are installed here.
    """
    where: dict[str, list[str]] = defaultdict(list)
    for name, found in [("here", broken), *((each.name, each.broken) for each in crew.reports)]:
        for why in found.values():
            where[why].append(name)
    if where:
        return fail(
            "apps",
            "; ".join(f"{why} ({', '.join(names)})" for why, names in where.items()),
            "Mend the app's code, or its entry in posthog_jobs_apps, and restart the worker",
        )
    return ok("apps", f"{count} installed, and each can be loaded here and in every worker")


def versions(crew: Crew, installed: Mapping[str, int]) -> Finding:
    """Look at what should be the same in all workers.

    Args:
        crew: the workers.
        installed: app id → version, in this process.
    """
    if not crew.reports:
        return ok("versions", "no worker tells its own, so there is nothing to compare")
    apart = []
    for what in crew.reports[0].versions:
        found = {report.name: report.versions.get(what) for report in crew.reports}
        if len(set(found.values())) > 1:
            apart.append(f"{what}: {_each(found)}")
    places = {"here": installed, **{report.name: report.installed for report in crew.reports}}
    for app_id in sorted({app_id for place in places.values() for app_id in place}):
        found = {name: _version(place.get(app_id)) for name, place in places.items()}
        if len(set(found.values())) > 1:
            apart.append(f"app id {app_id!r}: {_each(found)}")
    if apart:
        return warn(
            "versions",
            f"differ between workers: {'; '.join(apart)}",
            "Give all workers the same packages and configuration, and restart them",
        )
    same = ", ".join(f"{what} {found}" for what, found in crew.reports[0].versions.items())
    return ok("versions", f"{same}, and the same apps in all workers")


def _version(found: int | None) -> str:
    return "not installed" if found is None else f"version {found}"


def _each(found: Mapping[str, object], unit: str = "") -> str:
    groups: dict[object, list[str]] = defaultdict(list)
    for name, value in found.items():
        groups[value].append(name)
    return ", ".join(f"{value}{unit} on {_names(names)}" for value, names in groups.items())


def _names(names: Iterable[str]) -> str:
    return " and ".join(names)
