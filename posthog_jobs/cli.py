"""`celery -A posthog_jobs jobs …`. Celery imports this for every command, so it imports little."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from posthog_jobs.celery import PostHogJobs
    from posthog_jobs.waiting import Forecast, Steered, WaitingJob

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
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


class JobsGroup(click.Group):
    """A group whose commands end with one line, and no traceback, for what an operator can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our own errors are its message and exit code 1."""
        from posthog_jobs.errors import PostHogJobsError  # noqa: PLC0415  # keeps others light

        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except PostHogJobsError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=JobsGroup)
def jobs() -> None:
    """See, cancel and move the jobs that wait, and trigger new ones.

    A job waits from the call that sends it until it is due. Commands that change a job exit with 0
    if it waited, and with 1 if it did not.
    """


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
    page = _app(ctx).schedule.list(
        app_id=app_id,
        job=job,
        before=None if before is None else _moment(before, "--before"),
        limit=limit,
        cursor=cursor,
    )
    if as_json:
        _print_json({"jobs": [_described(waiting) for waiting in page.jobs], "cursor": page.cursor})
        return
    if not page.jobs:
        click.echo("Nothing waits.")
        return
    now = datetime.now(UTC)
    _print_table(
        ("ID", "APP", "JOB", "DUE (UTC)", "IN", "KEY"),
        [
            (
                waiting.id,
                waiting.app_id or "-",
                waiting.job.rpartition(".")[2] if waiting.app_id else waiting.job,
                f"{waiting.due:%Y-%m-%d %H:%M:%S}",
                _duration((waiting.due - now).total_seconds()),
                waiting.key or "-",
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
    waiting = _app(ctx).schedule.get(task_id)
    if waiting is None:
        _fail(f"No job waits under the id {task_id}: it was cancelled, has been due, or never was.")
    described = _described(waiting)
    if waiting.app_id:  # a job, so the body is JSON
        _, *payload = json.loads(waiting.body)[0]
        if payload:
            described["payload"] = payload[0]
    if as_json:
        _print_json(described)
        return
    for name, value in described.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name + ':':<9} {shown}")


@jobs.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@click.pass_context
def cancel(ctx: click.Context, *, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs that wait; one that has just left for its queue is revoked."""
    schedule = _app(ctx).schedule
    outcomes = {task_id: schedule.cancel(task_id) for task_id in dict.fromkeys(task_ids)}
    _report(outcomes, as_json=as_json)


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
    _report({task_id: _app(ctx).schedule.reschedule(task_id, moment)}, as_json=as_json)


@jobs.command("run-now")
@click.argument("task_id", metavar="ID")
@as_json
@click.pass_context
def run_now(ctx: click.Context, *, task_id: str, as_json: bool) -> None:
    """Run a job that waits before its time."""
    _report({task_id: _app(ctx).schedule.run_now(task_id)}, as_json=as_json)


@jobs.command()
@click.option("--app", "app_id", metavar="ID", help="Of this app id only.")
@click.option("--job", metavar="NAME", help="Of this job only, by its name or its task's.")
@as_json
@click.pass_context
def forecast(ctx: click.Context, *, app_id: str | None, job: str | None, as_json: bool) -> None:
    """Show how many jobs come due when, and how late the first one is."""
    coming = _app(ctx).schedule.forecast(app_id=app_id, job=job)
    counts = _counts(coming)
    if as_json:
        _print_json({**counts, "late_seconds": coming.late.total_seconds()})
        return
    most = max(counts.values()) or 1
    for period, count in counts.items():
        label = "later" if period == "later" else f"within a{'n' * (period == 'hour')} {period}"
        bar = "█" * (-(-40 * count // most))
        click.echo(f"{label:<16} {count:>9,} {bar}".rstrip())
    if coming.late:
        click.echo(f"The first is {_duration(coming.late.total_seconds())} late.")


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
    """Trigger the job JOB of the app id APP: now, or at a time."""
    given = []
    if payload is not None:
        try:
            given = [json.loads(payload)]
        except (ValueError, RecursionError) as error:
            raise click.BadParameter(f'{error}; quote it: --payload \'{{"url": "…"}}\'') from None
    moment = _due(in_, at)
    call = _app(ctx).meta_for(app_id).jobs[job](*given, key=key)
    handle = call.run_now() if moment is None else call.run_at(moment)
    if as_json:
        _print_json({"id": handle.id, "due": handle.due.isoformat()})
    else:
        click.echo(f"{handle.id} is due {handle.due:%Y-%m-%d %H:%M:%S} UTC.")


@jobs.command("stop-embedded")
def stop_embedded() -> None:
    """Stop the private Redis that is started when no broker is configured.

    Its data stays: the next process that needs it starts it again with all waiting jobs.
    """
    from posthog_jobs.embedded import EmbeddedServer  # noqa: PLC0415  # keeps other commands light

    server = EmbeddedServer.of_user()
    if server.stop():
        click.echo(f"Stopped the embedded Redis of {server.home}; its data stays there.")
    else:
        click.echo(f"No embedded Redis is running in {server.home}.")


def _app(ctx: click.Context) -> PostHogJobs:
    from posthog_jobs.celery import PostHogJobs  # noqa: PLC0415  # keeps other commands light

    app = getattr(ctx.obj, "app", None)
    if not isinstance(app, PostHogJobs):
        raise click.UsageError("Name the app: celery -A posthog_jobs jobs …")
    return app


def _due(in_: tuple[str, str] | None, at: str | None) -> datetime | None:
    if in_ is not None and at is not None:
        raise click.UsageError("--in and --at both say when; use one of them.")
    if at is not None:
        return _moment(at, "--at")
    if in_ is None:
        return None
    from posthog_jobs.durations import due_in  # noqa: PLC0415  # keeps other commands light

    number, unit = in_
    try:
        amount = float(number)
    except ValueError:
        raise click.UsageError(f"--in {number} {unit}: {number!r} is no number.") from None
    return due_in(int(amount) if amount.is_integer() else amount, unit, now=datetime.now(UTC))


def _moment(text: str, option: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{option} {text}: no time; write it as 2030-01-01T00:00Z."
        ) from None
    if moment.utcoffset() is None:
        raise click.UsageError(
            f"{option} {text}: no time zone; add Z for UTC, or +02:00, to the time."
        )
    return moment


def _described(waiting: WaitingJob) -> dict[str, Any]:
    return {
        "id": waiting.id,
        "app": waiting.app_id or None,
        "job": waiting.job.rpartition(".")[2] if waiting.app_id else None,
        "task": waiting.job,
        "due": waiting.due.isoformat(),
        "key": waiting.key,
        "queue": waiting.queue,
    }


def _counts(coming: Forecast) -> dict[str, int]:
    return {
        period: getattr(coming, period)
        for period in ("minute", "hour", "day", "week", "month", "later")
    }


_SENTENCES = {
    "cancelled": "cancelled",
    "rescheduled": "moved",
    "queued": "sent to its queue",
    "promoted": "had left for its queue already: it may be running, or have run",
    "unknown": "does not wait",
}


def _report(outcomes: dict[str, Steered], *, as_json: bool) -> None:
    if as_json:
        _print_json({task_id: steered.value for task_id, steered in outcomes.items()})
    else:
        for task_id, steered in outcomes.items():
            click.echo(f"{task_id}: {_SENTENCES[steered.value]}")
    if not all(steered.waited for steered in outcomes.values()):
        sys.exit(1)


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _duration(seconds: float) -> str:
    """Return a time span in its largest unit, for people."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
