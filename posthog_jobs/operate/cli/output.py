"""What all commands share: the app, errors of one line, tables and JSON."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from posthog_jobs.celery import PostHogJobs

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class CommandGroup(click.Group):
    """A group whose commands end with one line, and no traceback, for what an operator can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our own errors are its message, without secrets, and exit code 1."""
        from posthog_jobs.errors import PostHogJobsError  # noqa: PLC0415  # keeps others light
        from posthog_jobs.redaction import redact  # noqa: PLC0415  # as above

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
        from posthog_jobs.redaction import redact  # noqa: PLC0415  # keeps other commands light

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


def app_of(ctx: click.Context) -> PostHogJobs:
    """Return the app that `celery -A` has found."""
    from posthog_jobs.celery import PostHogJobs  # noqa: PLC0415  # keeps other commands light

    app = getattr(ctx.obj, "app", None)
    if not isinstance(app, PostHogJobs):
        group = ctx.parent.info_name if ctx.parent else ctx.info_name
        raise click.UsageError(f"Name the app: celery -A posthog_jobs {group} …")
    return app


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


def print_fields(fields: Mapping[str, Any], *, width: int, long: Collection[str] = ()) -> None:
    """Print names and values, one on each line.

    Args:
        fields: what to print; what is no string is printed as JSON.
        width: of the names.
        long: the names of those that have lines of their own.
    """
    for name, value in fields.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if name in long and shown:
            click.echo(f"{name}:\n{printable(shown).rstrip()}")
        else:
            click.echo(f"{name + ':':<{width}} {printable(shown)}")


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns as wide as they need."""
    # a cell is one line
    rows = [tuple(printable(cell).replace("\n", "\\n") for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def duration(seconds: float) -> str:
    """Return a time span in its largest unit, for people."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def moment_at(text: str, option: str) -> datetime:
    """Return the time that an option names; one without a zone is refused."""
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
