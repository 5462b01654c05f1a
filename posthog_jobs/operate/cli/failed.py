"""`celery -A posthog_jobs jobs failed | replay | discard`: what failed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from posthog_jobs.errors import ReplayError, UnknownFailureError
from posthog_jobs.operate.cli.output import (
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
    from collections.abc import Callable

    from posthog_jobs.broker.failure import FailedJob, Reason
    from posthog_jobs.broker.failures import Failures
    from posthog_jobs.operate.cli.output import Operated

#: In `failed show`, on lines of their own.
_LONG: Final = ("message", "traceback", "payload", "body")


def reason(text: str) -> Reason:
    """Return the reason that an option names."""
    from posthog_jobs.broker.failure import Reason  # noqa: PLC0415  # keeps other commands light

    try:
        return Reason(text)
    except ValueError:
        known = ", ".join(f'"{known.value}"' for known in Reason)
        raise click.BadParameter(f"{text!r} is not a reason; they are {known}.") from None


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose failed jobs."""
    before, why = "Failed before this time only.", "Kept for this reason only."
    command = click.option("--before", type=moment, metavar="TIME", help=before)(command)
    command = click.option("--reason", type=reason, metavar="WHY", help=why)(command)
    return of_job(command)


def choice(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ids, or `--all` with the options that choose failed jobs."""
    every = "All that are open and fit the options."
    command = click.option("--all", "every", is_flag=True, help=every)(command)
    command = filters(command)
    return click.argument("task_ids", metavar="ID...", nargs=-1)(command)


@click.group(invoke_without_command=True)
@filters
@click.option("--replayed", is_flag=True, help="Those that were replayed, instead.")
@click.option("--counts", is_flag=True, help="How many by app, job and reason.")
@paged
@with_app
def failed(app: Operated, *, counts: bool, as_json: bool, **chosen: Any) -> None:
    """List what failed, the newest first, or `show` one."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    if counts:
        _print_counts(app.failures, as_json=as_json)
        return
    page = app.failures.list(**chosen)
    jobs = [_listed(job) for job in page.jobs]
    if as_json:
        print_json({"jobs": jobs, "cursor": page.cursor})
        return
    if not jobs:
        click.echo("Nothing failed.")
        return
    for job, shown in zip(page.jobs, jobs, strict=True):
        shown.update(name=shown["job"] or job.job, failed=f"{job.failed:%Y-%m-%d %H:%M:%S}")
    columns = ("id", "app", "name", "failed", "reason", "exception", "attempts")
    print_table(
        ("ID", "APP", "JOB", "FAILED (UTC)", "REASON", "EXCEPTION", "ATTEMPTS"),
        [[job[column] for column in columns] for job in jobs],
    )
    if page.cursor:
        click.echo(f"More failed: --cursor {page.cursor}")


@failed.command()
@click.argument("task_id", metavar="ID")
@with_app
def show(app: Operated, *, task_id: str, as_json: bool) -> None:
    """Show a failed job, with its payload and its traceback."""
    job = app.failures.get(task_id)
    if job is None:
        fail(f"No failed job is kept under the id {task_id}.")
    described = {
        **_listed(job),
        "key": job.key,
        "due": job.due and job.due.isoformat(),
        "started": job.started and job.started.isoformat(),
        "ended": job.ended.isoformat(),
        "worker": job.worker,
        "queue": job.queue,
        "message": job.message,
        "traceback": job.traceback,
        **_payload(job),
    }
    if as_json:
        print_json(described)
    else:
        print_fields(described, width=13, long=_LONG)


@click.command()
@choice
@with_app
def replay(app: Operated, *, as_json: bool, **chosen: Any) -> None:
    """Send failed jobs again, with their payload as it was: by their ids, or --all that fit."""
    task_ids = _ids(chosen)
    if not task_ids:
        count = app.failures.replay_all(**chosen)
        _print_done({"replayed": count}, f"{count} sent again.", as_json=as_json)
        return
    outcomes: dict[str, str | None] = {}
    for task_id in task_ids:
        try:
            outcomes[task_id] = app.failures.replay(task_id)
        except (ReplayError, UnknownFailureError) as error:
            outcomes[task_id] = None
            click.echo(str(error), err=True)
    text = "\n".join(f"{old}: sent again as {new}" for old, new in outcomes.items() if new)
    _print_done(outcomes, text, as_json=as_json)


@click.command()
@choice
@with_app
def discard(app: Operated, *, as_json: bool, **chosen: Any) -> None:
    """Let failed jobs go for good: by their ids, or --all that fit."""
    task_ids = _ids(chosen)
    if not task_ids:
        count = app.failures.discard_all(**chosen)
        _print_done({"discarded": count}, f"{count} discarded.", as_json=as_json)
        return
    outcomes = {task_id: app.failures.discard(task_id) for task_id in task_ids}
    words = {True: "discarded", False: "is not a failed job"}
    text = "\n".join(f"{task_id}: {words[done]}" for task_id, done in outcomes.items())
    _print_done(outcomes, text, as_json=as_json)


def _ids(chosen: dict[str, Any]) -> list[str]:
    """Take the ids out of what a command was given; leave the filters, which there are else."""
    task_ids, every = chosen.pop("task_ids"), chosen.pop("every")
    if task_ids and (every or any(chosen.values())):
        raise click.UsageError("Give ids, or --all with the options that choose; not both.")
    if not task_ids and not every:
        raise click.UsageError("Say which: ids, or --all, with options such as --app that choose.")
    return list(dict.fromkeys(task_ids))


def _print_done(outcomes: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print what became of failed jobs, and exit with 1 if nothing did of one."""
    if as_json:
        print_json(outcomes)
    elif text:
        click.echo(text)
    if any(outcome is None or outcome is False for outcome in outcomes.values()):
        sys.exit(1)


def _print_counts(failures: Failures, *, as_json: bool) -> None:
    counts, dropped = failures.counts(), failures.dropped()
    if as_json:
        rows = [
            {"app": c.app_id or None, "task": c.job, "reason": c.reason.value, "count": c.count}
            for c in counts
        ]
        print_json({"counts": rows, "dropped": dropped})
        return
    print_table(
        ("COUNT", "APP", "TASK", "REASON"),
        [(f"{c.count:,}", c.app_id, c.job, c.reason.value) for c in counts],
    )
    if dropped:
        click.echo(f"{dropped:,} were let go so far, as they were too old or too many.")


def _listed(job: FailedJob) -> dict[str, Any]:
    """Return what a list shows: nothing that may quote the payload."""
    return {
        **named(job),
        "failed": job.failed.isoformat(),
        "reason": job.reason.value,
        "exception": job.exception or None,
        "attempts": job.attempts,
        "replay_of": job.replay_of,
        "replayed_as": job.replayed_as,
    }


def _payload(job: FailedJob) -> dict[str, Any]:
    """Return the payload where there is one, else what can be shown of the message."""
    body = job.body
    try:
        _, *payload = json.loads(body or b"")[0]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return {"body": (job.raw if body is None else body).decode("utf-8", "replace")}
    if job.app_id and len(payload) <= 1:
        return {"payload": payload[0]} if payload else {}
    return {"body": (body or b"").decode("utf-8", "replace")}
