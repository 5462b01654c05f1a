"""`celery -A posthog_jobs jobs …`: what waits. Celery imports this for every command."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from posthog_jobs.operate.cli.failed import discard, failed, replay
from posthog_jobs.operate.cli.output import (
    CommandGroup,
    duration,
    fail,
    moment,
    named,
    of_job,
    paged,
    print_fields,
    print_json,
    print_table,
    with_app,
)

if TYPE_CHECKING:
    from posthog_jobs.broker.schedule import WaitingJob
    from posthog_jobs.jobs.message import Steered
    from posthog_jobs.operate.cli.output import Operated

in_ = click.option(
    "--in",
    "in_",
    type=(float, str),
    metavar="N UNIT",
    help="After a while, such as --in 5 minutes; the units of run_in.",
)
at = click.option(
    "--at",
    type=moment,
    metavar="TIME",
    help="At a time with its zone, such as --at 2030-01-01T00:00Z.",
)

#: Of `Forecast`.
_PERIODS: Final = ("minute", "hour", "day", "week", "month", "later")

_SENTENCES: Final = {
    "cancelled": "cancelled",
    "rescheduled": "moved",
    "queued": "sent to its queue",
    "promoted": "had left for its queue already{}: it may be running, or have run",
    "unknown": "does not wait",
}

#: Verdict of the doctor → its colour, and the exit code.
_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}
_CODES: Final = {"ok": 0, "warn": 1, "fail": 2}


@click.group(cls=CommandGroup)
def jobs() -> None:
    """See, cancel and move the jobs that wait, trigger new ones, and replay what failed.

    A job waits from the call that sends it until it is due. Commands that change a job exit with 0
    if it waited, and with 1 if it did not.
    """


for command in (failed, replay, discard):
    jobs.add_command(command)


@jobs.command("list")
@of_job
@click.option("--before", type=moment, metavar="TIME", help="Due before this time only.")
@paged
@with_app
def list_(app: Operated, *, as_json: bool, **chosen: Any) -> None:
    """List what waits, the first due first."""
    page = app.schedule.list(**chosen)
    # without what the last error says, which may quote the payload
    errors = [job.last_error and job.last_error.partition(":")[0] for job in page.jobs]
    if as_json:
        found = zip(page.jobs, errors, strict=True)
        jobs = [{**_described(job), "error": error} for job, error in found]
        print_json({"jobs": jobs, "cursor": page.cursor})
        return
    if not page.jobs:
        click.echo("Nothing waits.")
        return
    now = datetime.now(UTC)
    print_table(
        ("ID", "APP", "JOB", "DUE (UTC)", "IN", "KEY", "ATTEMPT"),
        [
            (
                job.id,
                job.app_id,
                named(job)["job"] or job.job,
                f"{job.due:%Y-%m-%d %H:%M:%S}",
                duration((job.due - now).total_seconds()),
                job.key,
                f"{job.attempt}, after {error}" if error else job.attempt,
            )
            for job, error in zip(page.jobs, errors, strict=True)
        ],
    )
    if page.cursor:
        click.echo(f"More wait: --cursor {page.cursor}")


@jobs.command()
@click.argument("task_id", metavar="ID")
@with_app
def show(app: Operated, *, task_id: str, as_json: bool) -> None:
    """Show a job that waits, with its payload."""
    waiting = app.schedule.get(task_id)
    if waiting is None:
        fail(f"No job waits under the id {task_id}: it was cancelled, has been due, or never was.")
    shown = _described(waiting)
    if waiting.app_id:  # a job
        try:
            _, *payload = json.loads(waiting.body)[0]
        except Exception as error:  # noqa: BLE001  # whoever sent it may have sent anything
            shown["unreadable"] = type(error).__name__  # a worker will keep it as failed
        else:
            if payload:
                shown["payload"] = payload[0]
    if as_json:
        print_json(shown)
    else:
        print_fields(shown)


@jobs.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@with_app
def cancel(app: Operated, *, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs that wait; one that has just left for its queue is revoked."""
    schedule = app.schedule
    outcomes = {task_id: schedule.cancel(task_id) for task_id in dict.fromkeys(task_ids)}
    _report(outcomes, promoted=", and is revoked", as_json=as_json)


@jobs.command()
@click.argument("task_id", metavar="ID")
@in_
@at
@with_app
def reschedule(app: Operated, *, task_id: str, as_json: bool, **when: Any) -> None:
    """Move a job that waits to another time."""
    due = _due(**when)
    if due is None:
        raise click.UsageError("Say when: --in 5 minutes, or --at 2030-01-01T00:00Z.")
    _report({task_id: app.schedule.reschedule(task_id, due)}, as_json=as_json)


@jobs.command("run-now")
@click.argument("task_id", metavar="ID")
@with_app
def run_now(app: Operated, *, task_id: str, as_json: bool) -> None:
    """Run a job that waits before its time."""
    _report({task_id: app.schedule.run_now(task_id)}, as_json=as_json)


@jobs.command()
@of_job
@with_app
def forecast(app: Operated, *, as_json: bool, **chosen: Any) -> None:
    """Show how many jobs come due when, and how late the first one is."""
    coming = app.schedule.forecast(**chosen)
    counts = {period: getattr(coming, period) for period in _PERIODS}
    if as_json:
        print_json({**counts, "late_seconds": coming.late.total_seconds()})
        return
    most = max(counts.values()) or 1
    for period, count in counts.items():
        label = "later" if period == "later" else f"within a{'n' * (period == 'hour')} {period}"
        bar = "█" * (-(-40 * count // most))
        click.echo(f"{label:<16} {count:>9,} {bar}".rstrip())
    if coming.late:
        click.echo(f"The first is {duration(coming.late.total_seconds())} late.")


@jobs.command()
@click.argument("app_id", metavar="APP")
@click.argument("job")
@click.option("--payload", metavar="JSON", help="The payload; without it the job has none.")
@in_
@at
@click.option("--key", help="At most one job of this name waits under it; this one replaces it.")
@with_app
def run(  # noqa: PLR0913  # one parameter an option
    app: Operated,
    *,
    app_id: str,
    job: str,
    payload: str | None,
    key: str | None,
    as_json: bool,
    **when: Any,
) -> None:
    """Trigger the job JOB of the app id APP: now, or at a time.

    The payload of a job that is under "publicJobs" in plugin.json is checked, and its defaults are
    filled in.
    """
    given = []
    if payload is not None:
        try:
            given = [json.loads(payload)]
        except (ValueError, RecursionError) as error:
            raise click.BadParameter(f'{error}; quote it: --payload \'{{"url": "…"}}\'') from None
    due = _due(**when)
    public = app.runtime.installations.get(app_id).definition.manifest.public_jobs.get(job)
    if public is not None and public.payload is not None:
        given = [public.check(given[0] if given else {})]
    call = app.meta_for(app_id).jobs[job](*given, key=key)
    handle = call.run_now() if due is None else call.run_at(due)
    if as_json:
        print_json({"id": handle.id, "due": handle.due.isoformat()})
    else:
        click.echo(f"{handle.id} is due {handle.due:%Y-%m-%d %H:%M:%S} UTC.")


@jobs.command()
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the workers' answers.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if there are warnings.")
@with_app
def doctor(app: Operated, *, timeout: float, strict: bool, as_json: bool) -> None:
    """Look at broker and workers: ok, warn or fail, each with the fix.

    Looks at the server's version, persistence, eviction and memory, at the clocks, at the workers
    that answer, their apps, versions and leases, at queues that nobody consumes, at how late the
    schedule is and at messages stuck in flight; on RabbitMQ at its limits. Nothing is changed.

    The exit code is 2 if anything is fail, else 0; with --strict it is 1 for warnings.
    """
    quiet = logging.NullHandler()  # what is logged of broken apps is in the table
    logger = logging.getLogger("posthog_jobs")
    logger.addHandler(quiet)
    try:
        found = app.doctor(timeout=timeout)
    finally:
        logger.removeHandler(quiet)
    if as_json:
        print_json([{**asdict(finding), "verdict": finding.verdict.value} for finding in found])
    else:
        color = False if click.get_current_context().obj.no_color else None
        width = max(len(finding.check) for finding in found)
        for finding in found:
            verdict = finding.verdict.value
            mark = click.style(f"{verdict:<4}", fg=_COLOURS[verdict])
            click.echo(f"{mark}  {finding.check:<{width}}  {finding.detail}", color=color)
            if finding.fix:  # below what it mends
                click.echo(f"{'':<{width + 8}}→ {finding.fix}")
    worst = max(_CODES[finding.verdict.value] for finding in found)
    sys.exit(worst if strict or worst == _CODES["fail"] else 0)


@jobs.command("stop-embedded")
def stop_embedded() -> None:
    """Stop the private Redis that is started when no broker is configured.

    Its data stays: the next process that needs it starts it again with all waiting jobs.
    """
    from posthog_jobs.broker.embedded import EmbeddedServer  # noqa: PLC0415  # keeps other commands light

    server = EmbeddedServer.of_user()
    if server.stop():
        click.echo(f"Stopped the embedded Redis of {server.home}; its data stays there.")
    else:
        click.echo(f"No embedded Redis is running in {server.home}.")


def _due(in_: tuple[float, str] | None, at: datetime | None) -> datetime | None:
    if in_ is not None and at is not None:
        raise click.UsageError("--in and --at both say when; use one of them.")
    if in_ is None:
        return at
    from posthog_jobs.jobs.due import due_in  # noqa: PLC0415  # keeps other commands light

    number, unit = in_
    return due_in(int(number) if number.is_integer() else number, unit, now=datetime.now(UTC))


def _described(waiting: WaitingJob) -> dict[str, Any]:
    """Return what is known of a job that waits, but its payload."""
    return {
        **named(waiting),
        "due": waiting.due.isoformat(),
        "key": waiting.key,
        "queue": waiting.queue,
        "attempt": waiting.attempt,
        "error": waiting.last_error,
    }


def _report(outcomes: dict[str, Steered], *, as_json: bool, promoted: str = "") -> None:
    """Print what became of jobs, and exit with 1 if one of them did not wait."""
    if as_json:
        print_json({task_id: steered.value for task_id, steered in outcomes.items()})
    else:
        for task_id, steered in outcomes.items():
            click.echo(f"{task_id}: {_SENTENCES[steered.value].format(promoted)}")
    if not all(steered.waited for steered in outcomes.values()):
        sys.exit(1)
