"""What all commands share: the app, options, errors of one line, tables and JSON."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import click

from posthog_jobs.errors import PostHogJobsError
from posthog_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.broker.failures import Failures
    from posthog_jobs.broker.schedule import Schedule, WaitingJob
    from posthog_jobs.meta.meta import Meta
    from posthog_jobs.operate.apps import Apps
    from posthog_jobs.operate.doctor import Finding
    from posthog_jobs.worker.runtime import Runtime


class Operated(Protocol):
    """What the commands need of the Celery app."""

    @property
    def schedule(self) -> Schedule:
        """What waits."""

    @property
    def failures(self) -> Failures:
        """What failed."""

    @property
    def apps(self) -> Apps:
        """Who is installed."""

    @property
    def runtime(self) -> Runtime:
        """Who is installed, in this process."""

    def meta_for(self, app_id: str) -> Meta:
        """Return an installation's `meta`."""

    def doctor(self, *, timeout: float) -> list[Finding]:
        """Look at broker and workers."""


class CommandGroup(click.Group):
    """A group whose commands end with one line, and no traceback, for what an operator can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our own errors are its message, without secrets, and exit code 1."""
        try:
            with _logs_of_one_line():
                return super().invoke(ctx)
        except click.ClickException:
            raise
        except PostHogJobsError as error:
            raise click.ClickException(redact(str(error))) from error


class _OneLine(logging.Formatter):
    """Says what happened, without the traceback that a worker's log has."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(record.getMessage())


@contextmanager
def _logs_of_one_line() -> Iterator[None]:
    """Tell on stderr, a line each, what is logged meanwhile, such as of an app that is broken."""
    logger, handler = logging.getLogger("posthog_jobs"), logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def with_app(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the app that `celery -A` has found, and the option `--json`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    @click.pass_context
    @wraps(function)
    def command(ctx: click.Context, /, **options: Any) -> None:
        app: Operated | None = getattr(ctx.obj, "app", None)
        if not hasattr(app, "meta_for"):  # there is none, or one of Celery's own class
            group = ctx.parent.info_name if ctx.parent else ctx.info_name
            raise click.UsageError(f"Name the app: celery -A posthog_jobs {group} …")
        function(app, **options)

    return command


def of_job(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose by app and job."""
    name = "Of this job only, by its name or its task's."
    for option in (
        click.option("--job", metavar="NAME", help=name),
        click.option("--app", "app_id", metavar="ID", help="Of this app id only."),
    ):
        command = option(command)
    return command


def paged(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a long list."""
    limit = click.IntRange(1, 10_000)
    for option in (
        click.option("--cursor", help="Go on where a list before has ended."),
        click.option("--limit", type=limit, default=100, show_default=True),
    ):
        command = option(command)
    return command


def moment(text: str) -> datetime:
    """Return the time that an option names; one without a zone is refused."""
    try:
        named = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a time; write it as 2030-01-01T00:00Z."
        ) from None
    if named.utcoffset() is None:
        raise click.BadParameter(f"{text} has no time zone; add Z for UTC, or +02:00, to the time.")
    return named


def fail(message: str) -> NoReturn:
    """End the command with a message and exit code 1."""
    raise click.ClickException(message)


def printable(text: str) -> str:
    """Return a text without what could steer a terminal; it may come from whoever sent a message.

    Line ends and tabs are left.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )


def print_fields(fields: Mapping[str, Any], *, width: int = 9, long: Collection[str] = ()) -> None:
    """Print names and values, one on each line.

    Args:
        fields: what to print; what is not a string is printed as JSON.
        width: of the names.
        long: the names of those that have lines of their own.
    """
    for name, value in fields.items():
        shown = value
        if not isinstance(value, str):
            shown = json.dumps(value, ensure_ascii=False, default=str)
        if name in long and shown:
            click.echo(f"{name}:\n{printable(shown).rstrip()}")
        else:
            click.echo(f"{name + ':':<{width}} {printable(shown)}")


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> None:
    """Print rows in columns as wide as they need; what is not there is a dash."""
    # a cell is one line
    cells = [
        tuple(printable(str(cell or "-")).replace("\n", "\\n") for cell in row) for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in (head, *cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def named(job: WaitingJob | FailedJob) -> dict[str, str | None]:
    """Return what names a job: as it is exported if it is an app's, and always as a task."""
    return {
        "id": job.id,
        "app": job.app_id or None,
        "job": job.job.rpartition(".")[2] if job.app_id else None,
        "task": job.job or None,
    }


def duration(seconds: float) -> str:
    """Return a time span in its largest unit, for people."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
