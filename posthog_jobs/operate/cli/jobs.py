"""`celery -A posthog_jobs jobs …`: what waits. Celery imports this for every command."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from posthog_jobs.operate.cli.doctor import doctor
from posthog_jobs.operate.cli.failed import discard, failed, replay
from posthog_jobs.operate.cli.output import (
    CommandGroup,
    app_of,
    as_json,
    duration,
    fail,
    moment_at,
    print_fields,
    print_json,
    print_table,
)
from posthog_jobs.operate.cli.waiting import attempt, counts, described, report

in_ = click.option(
    "--in",
    "in_",
    nargs=2,
    metavar="N UNIT",
    help="After a while, such as --in 5 minutes; the units of run_in.",
)
at = click.option(
    "--at", metavar="TIME", help="At a time with its zone, such as --at 2030-01-01T00:00Z."
)


@click.group(cls=CommandGroup)
def jobs() -> None:
    """See, cancel and move the jobs that wait, trigger new ones, and replay what failed.

    A job waits from the call that sends it until it is due. Commands that change a job exit with 0
    if it waited, and with 1 if it did not.
    """


for command in (failed, replay, discard, doctor):
    jobs.add_command(command)


@jobs.command("list")
@click.option("--app", "app_id", metavar="ID", help="Of this app id only.")
@click.option("--job", metavar="NAME", help="Of this job only, by its name or its task's.")
@click.option("--before", metavar="TIME", help="Due before this time only.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--cursor", help="Go on where a list before has ended.")
@as_json
@click.pass_context
def list_(  # noqa: PLR0913  # one parameter an option
    ctx: click.Context,
    *,
    app_id: str | None,
    job: str | None,
    before: str | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List what waits, the first due first."""
    page = app_of(ctx).schedule.list(
        app_id=app_id,
        job=job,
        before=None if before is None else moment_at(before, "--before"),
        limit=limit,
        cursor=cursor,
    )
    if as_json:
        jobs = [described(waiting, error_class_alone=True) for waiting in page.jobs]
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
                waiting.id,
                waiting.app_id or "-",
                waiting.job.rpartition(".")[2] if waiting.app_id else waiting.job,
                f"{waiting.due:%Y-%m-%d %H:%M:%S}",
                duration((waiting.due - now).total_seconds()),
                waiting.key or "-",
                attempt(waiting),
            )
            for waiting in page.jobs
        ],
    )
    if page.cursor:
        click.echo(f"More wait: --cursor {page.cursor}")


@jobs.command()
@click.argument("task_id", metavar="ID")
@as_json
@click.pass_context
def show(ctx: click.Context, *, task_id: str, as_json: bool) -> None:
    """Show a job that waits, with its payload."""
    waiting = app_of(ctx).schedule.get(task_id)
    if waiting is None:
        fail(f"No job waits under the id {task_id}: it was cancelled, has been due, or never was.")
    shown = described(waiting)
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
        return
    print_fields(shown, width=9)


@jobs.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@click.pass_context
def cancel(ctx: click.Context, *, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs that wait; one that has just left for its queue is revoked."""
    schedule = app_of(ctx).schedule
    outcomes = {task_id: schedule.cancel(task_id) for task_id in dict.fromkeys(task_ids)}
    report(outcomes, as_json=as_json)


@jobs.command()
@click.argument("task_id", metavar="ID")
@in_
@at
@as_json
@click.pass_context
def reschedule(
    ctx: click.Context, *, task_id: str, in_: tuple[str, str] | None, at: str | None, as_json: bool
) -> None:
    """Move a job that waits to another time."""
    moment = _due(in_, at)
    if moment is None:
        raise click.UsageError("Say when: --in 5 minutes, or --at 2030-01-01T00:00Z.")
    report({task_id: app_of(ctx).schedule.reschedule(task_id, moment)}, as_json=as_json)


@jobs.command("run-now")
@click.argument("task_id", metavar="ID")
@as_json
@click.pass_context
def run_now(ctx: click.Context, *, task_id: str, as_json: bool) -> None:
    """Run a job that waits before its time."""
    report({task_id: app_of(ctx).schedule.run_now(task_id)}, as_json=as_json)


@jobs.command()
@click.option("--app", "app_id", metavar="ID", help="Of this app id only.")
@click.option("--job", metavar="NAME", help="Of this job only, by its name or its task's.")
@as_json
@click.pass_context
def forecast(ctx: click.Context, *, app_id: str | None, job: str | None, as_json: bool) -> None:
    """Show how many jobs come due when, and how late the first one is."""
    coming = app_of(ctx).schedule.forecast(app_id=app_id, job=job)
    periods = counts(coming)
    if as_json:
        print_json({**periods, "late_seconds": coming.late.total_seconds()})
        return
    most = max(periods.values()) or 1
    for period, count in periods.items():
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
@as_json
@click.pass_context
def run(  # noqa: PLR0913  # one parameter an option
    ctx: click.Context,
    *,
    app_id: str,
    job: str,
    payload: str | None,
    in_: tuple[str, str] | None,
    at: str | None,
    key: str | None,
    as_json: bool,
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
    moment = _due(in_, at)
    app = app_of(ctx)
    public = app.runtime.installations.get(app_id).definition.manifest.public_jobs.get(job)
    if public is not None and public.payload is not None:
        given = [public.check(given[0] if given else {})]
    call = app.meta_for(app_id).jobs[job](*given, key=key)
    handle = call.run_now() if moment is None else call.run_at(moment)
    if as_json:
        print_json({"id": handle.id, "due": handle.due.isoformat()})
    else:
        click.echo(f"{handle.id} is due {handle.due:%Y-%m-%d %H:%M:%S} UTC.")


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


def _due(in_: tuple[str, str] | None, at: str | None) -> datetime | None:
    if in_ is not None and at is not None:
        raise click.UsageError("--in and --at both say when; use one of them.")
    if at is not None:
        return moment_at(at, "--at")
    if in_ is None:
        return None
    from posthog_jobs.jobs.due import due_in  # noqa: PLC0415  # keeps other commands light

    number, unit = in_
    try:
        amount = float(number)
    except ValueError:
        raise click.UsageError(f"--in {number} {unit}: {number!r} is no number.") from None
    return due_in(int(amount) if amount.is_integer() else amount, unit, now=datetime.now(UTC))
