"""`celery -A posthog_jobs jobs doctor`: what is wrong with broker and workers, and the fix."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import click

from posthog_jobs.operate.cli.output import app_of, as_json, print_json

if TYPE_CHECKING:
    from posthog_jobs.operate.doctor import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_CODES = {"ok": 0, "warn": 1, "fail": 2}


@click.command()
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the workers' answers.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if there are warnings.")
@as_json
@click.pass_context
def doctor(ctx: click.Context, *, timeout: float, strict: bool, as_json: bool) -> None:
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
        found = app_of(ctx).doctor(timeout=timeout)
    finally:
        logger.removeHandler(quiet)
    if as_json:
        print_json([_described(finding) for finding in found])
    else:
        _print(found, color=False if ctx.obj.no_color else None)
    worst = max(_CODES[finding.verdict.value] for finding in found)
    sys.exit(worst if strict or worst == _CODES["fail"] else 0)


def _print(found: list[Finding], *, color: bool | None) -> None:
    """Print a table; a fix stands below what it mends."""
    width = max(len(finding.check) for finding in found)
    for finding in found:
        verdict = finding.verdict.value
        mark = click.style(f"{verdict:<4}", fg=_COLOURS[verdict])
        click.echo(f"{mark}  {finding.check:<{width}}  {finding.detail}", color=color)
        if finding.fix:
            click.echo(f"{'':<{width + 8}}→ {finding.fix}")


def _described(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "verdict": finding.verdict.value,
        "detail": finding.detail,
        "fix": finding.fix,
    }
