"""`celery -A posthog_jobs jobs failed | replay | discard`: what failed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from posthog_jobs.operate.cli.output import (
    app_of,
    as_json,
    fail,
    moment_at,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.broker.failures import Failures, Filters

#: In `failed show`, on lines of their own.
_LONG = ("message", "traceback", "payload", "body")


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose failed jobs."""
    for option in (
        click.option("--before", metavar="TIME", help="Failed before this time only."),
        click.option("--reason", metavar="WHY", help="Kept for this reason only."),
        click.option("--job", metavar="NAME", help="Of this job only, by its name or its task's."),
        click.option("--app", "app_id", metavar="ID", help="Of this app id only."),
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@filters
@click.option("--replayed", is_flag=True, help="Those that were replayed, instead.")
@click.option("--counts", is_flag=True, help="How many by app, job and reason.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--cursor", help="Go on where a list before has ended.")
@as_json
@click.pass_context
def failed(  # noqa: PLR0913  # one parameter an option
    ctx: click.Context,
    /,
    *,
    replayed: bool,
    counts: bool,
    limit: int,
    cursor: str | None,
    as_json: bool,
    **chosen: str | None,
) -> None:
    """List what failed, the newest first, or `show` one."""
    if ctx.invoked_subcommand is not None:
        return
    failures = app_of(ctx).failures
    if counts:
        _print_counts(failures, as_json=as_json)
        return
    page = failures.list(replayed=replayed, limit=limit, cursor=cursor, **_filters(chosen))
    if as_json:
        print_json({"jobs": [_listed(job) for job in page.jobs], "cursor": page.cursor})
        return
    if not page.jobs:
        click.echo("Nothing failed.")
        return
    print_table(
        ("ID", "APP", "JOB", "FAILED (UTC)", "REASON", "EXCEPTION", "ATTEMPTS"),
        [
            (
                job.id,
                job.app_id or "-",
                job.job.rpartition(".")[2] if job.app_id else job.job or "-",
                f"{job.failed:%Y-%m-%d %H:%M:%S}",
                job.reason.value,
                job.exception or "-",
                str(job.attempts),
            )
            for job in page.jobs
        ],
    )
    if page.cursor:
        click.echo(f"More failed: --cursor {page.cursor}")


@failed.command()
@click.argument("task_id", metavar="ID")
@as_json
@click.pass_context
def show(ctx: click.Context, *, task_id: str, as_json: bool) -> None:
    """Show a failed job, with its payload and its traceback."""
    job = app_of(ctx).failures.get(task_id)
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
        return
    print_fields(described, width=13, long=_LONG)


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1)
@filters
@click.option("--all", "every", is_flag=True, help="All that are open and fit the options.")
@as_json
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    *,
    task_ids: tuple[str, ...],
    every: bool,
    as_json: bool,
    **chosen: str | None,
) -> None:
    """Send failed jobs again, with their payload as it was: by their ids, or --all that fit."""
    from posthog_jobs.errors import ReplayError, UnknownFailureError  # noqa: PLC0415  # light

    failures = app_of(ctx).failures
    if _wants_all(task_ids, chosen, every=every):
        count = failures.replay_all(**_filters(chosen))
        _print_done({"replayed": count}, f"{count} sent again.", as_json=as_json)
        return
    outcomes: dict[str, str | None] = {}
    for task_id in dict.fromkeys(task_ids):
        try:
            outcomes[task_id] = failures.replay(task_id)
        except (ReplayError, UnknownFailureError) as error:
            outcomes[task_id] = None
            click.echo(str(error), err=True)
    text = "\n".join(f"{old}: sent again as {new}" for old, new in outcomes.items() if new)
    _print_done(outcomes, text, as_json=as_json)
    if None in outcomes.values():
        sys.exit(1)


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1)
@filters
@click.option("--all", "every", is_flag=True, help="All that are open and fit the options.")
@as_json
@click.pass_context
def discard(
    ctx: click.Context,
    /,
    *,
    task_ids: tuple[str, ...],
    every: bool,
    as_json: bool,
    **chosen: str | None,
) -> None:
    """Let failed jobs go for good: by their ids, or --all that fit."""
    failures = app_of(ctx).failures
    if _wants_all(task_ids, chosen, every=every):
        count = failures.discard_all(**_filters(chosen))
        _print_done({"discarded": count}, f"{count} discarded.", as_json=as_json)
        return
    outcomes = {task_id: failures.discard(task_id) for task_id in dict.fromkeys(task_ids)}
    words = {True: "discarded", False: "is no failed job"}
    text = "\n".join(f"{task_id}: {words[done]}" for task_id, done in outcomes.items())
    _print_done(outcomes, text, as_json=as_json)
    if not all(outcomes.values()):
        sys.exit(1)


def _wants_all(task_ids: tuple[str, ...], chosen: dict[str, str | None], *, every: bool) -> bool:
    if task_ids and (every or any(chosen.values())):
        raise click.UsageError("Give ids, or --all with the options that choose; not both.")
    if not task_ids and not every:
        raise click.UsageError("Say which: ids, or --all, with options such as --app that choose.")
    return not task_ids


def _filters(chosen: dict[str, str | None]) -> Filters:
    from posthog_jobs.broker.failure import Reason  # noqa: PLC0415  # keeps other commands light

    before, reason = chosen["before"], chosen["reason"]
    if reason is not None and reason not in {known.value for known in Reason}:
        known = ", ".join(f'"{known.value}"' for known in Reason)
        raise click.UsageError(f"--reason {reason}: no reason; they are {known}.")
    return {
        "app_id": chosen["app_id"],
        "job": chosen["job"],
        "reason": None if reason is None else Reason(reason),
        "before": None if before is None else moment_at(before, "--before"),
    }


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
        [(f"{c.count:,}", c.app_id or "-", c.job or "-", c.reason.value) for c in counts],
    )
    if dropped:
        click.echo(f"{dropped:,} were let go so far, as they were too old or too many.")


def _print_done(outcomes: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(outcomes)
    elif text:
        click.echo(text)


def _listed(job: FailedJob) -> dict[str, Any]:
    """Return what a list shows: nothing that may quote the payload."""
    return {
        "id": job.id,
        "app": job.app_id or None,
        "job": job.job.rpartition(".")[2] if job.app_id else None,
        "task": job.job or None,
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
