"""`celery -A posthog_jobs apps …`: who is installed. Celery imports this for every command."""

from __future__ import annotations

import base64
import json
import mimetypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posthog_jobs.operate.cli.output import (
    CommandGroup,
    print_fields,
    print_json,
    print_table,
    with_app,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.apps.installation import InstalledApp
    from posthog_jobs.operate.cli.output import Operated


def fields_of(text: str) -> dict[str, Any]:
    """Return the config's fields that `--config-json` has."""
    try:
        config = json.loads(sys.stdin.read() if text == "-" else text)
    except (ValueError, RecursionError) as error:
        # without the text, which may hold a secret
        raise click.UsageError(
            f'--config-json is not JSON ({type(error).__name__}); quote it: \'{{"url": "…"}}\''
        ) from None
    if not isinstance(config, dict):
        raise click.UsageError('--config-json is not a JSON object; write \'{"url": "…"}\'.')
    return config


def field_of(text: str) -> tuple[str, Any]:
    """Return name and value of a field of the config."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError("A field of the config is written as KEY=VALUE.")
    if not value.startswith("@") or value.startswith("@@"):
        return key, value[1:] if value.startswith("@@") else value
    file = Path(value[1:])
    try:
        contents = file.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}.") from None
    return key, {
        "content_type": mimetypes.guess_type(file.name)[0] or "application/octet-stream",
        "file_name": file.name,
        "contents": base64.b64encode(contents).decode("ascii"),
    }


config_json = click.option(
    "--config-json",
    "fields",
    type=fields_of,
    default="{}",
    metavar="JSON",
    help="The config's fields as a JSON object; - reads it from the standard input.",
)
team = click.option("--team", "team_id", type=int, metavar="ID", help="Whose events it sees.")
order = click.option("--order", type=int, help="Hooks run in ascending order.")


@click.group(cls=CommandGroup)
def apps() -> None:
    """See who is installed; install, configure, disable and remove apps while workers run.

    Workers take a change within a second. What posthog_jobs_apps configures is changed there.
    """


@apps.command("list")
@with_app
def list_(app: Operated, *, as_json: bool) -> None:
    """List what is installed, in the order in which hooks run."""
    installed = [_described(each) for each in app.apps.list()]
    if as_json:
        # a config is for who asks for it by `show`
        print_json(
            {"apps": [{k: v for k, v in each.items() if k != "config"} for each in installed]}
        )
    elif not installed:
        click.echo("No app is installed.")
    else:
        columns = ("id", "module", "team_id", "order", "state", "from")
        print_table(
            ("ID", "MODULE", "TEAM", "ORDER", "STATE", "FROM"),
            [[str(each[column]) for column in columns] for each in installed],
        )


@apps.command()
@click.argument("app_id", metavar="ID")
@with_app
def show(app: Operated, *, app_id: str, as_json: bool) -> None:
    """Show an installation, with its config but for secrets, its jobs and its metrics."""
    _show(app.apps.get(app_id), metrics=app.apps.metrics(app_id), as_json=as_json)


@apps.command()
@click.argument("module")
@click.option("--id", "app_id", required=True, metavar="ID", help="The app id.")
@click.option(
    "--config",
    "pairs",
    type=field_of,
    multiple=True,
    metavar="KEY=VALUE",
    help="A field of its config; KEY=@FILE is a file's contents, KEY=@@VALUE begins with an @.",
)
@config_json
@team
@order
@click.option("--disabled", is_flag=True, help="It runs only once it is enabled.")
@with_app
def install(  # noqa: PLR0913  # one parameter an option
    app: Operated,
    *,
    module: str,
    app_id: str,
    pairs: tuple[tuple[str, Any], ...],
    fields: dict[str, Any],
    order: int | None,
    disabled: bool,
    as_json: bool,
    **said: Any,
) -> None:
    """Install the app of MODULE: a module's name, or the path of a file or folder."""
    said |= {"config": {**fields, **dict(pairs)}, "enabled": not disabled, "order": order or 0}
    installed = app.apps.install(module, id=app_id, **said)
    _show(installed, as_json=as_json)


@apps.command()
@click.argument("app_id", metavar="ID")
@click.argument("pairs", type=field_of, metavar="[KEY=VALUE]...", nargs=-1)
@config_json
@click.option("--unset", multiple=True, metavar="KEY", help="Remove a field of its config.")
@click.option("--module", help="Other code for it.")
@team
@order
@with_app
def configure(  # noqa: PLR0913  # one parameter an option
    app: Operated,
    *,
    app_id: str,
    pairs: tuple[tuple[str, Any], ...],
    fields: dict[str, Any],
    unset: tuple[str, ...],
    as_json: bool,
    **said: Any,
) -> None:
    """Change an installation; what is not named stays as it is."""
    changes = {**fields, **dict(pairs), **dict.fromkeys(unset)}
    if not changes and all(value is None for value in said.values()):
        raise click.UsageError("Say what to change: KEY=VALUE, --unset, --module, --team, --order.")
    _show(app.apps.configure(app_id, changes, **said), as_json=as_json)


@apps.command()
@click.argument("app_id", metavar="ID")
@with_app
def enable(app: Operated, *, app_id: str, as_json: bool) -> None:
    """Let an installation run again."""
    _show(app.apps.enable(app_id), as_json=as_json)


@apps.command()
@click.argument("app_id", metavar="ID")
@with_app
def disable(app: Operated, *, app_id: str, as_json: bool) -> None:
    """Let an installation run neither hooks nor jobs; its waiting jobs stay until they are due."""
    _show(app.apps.disable(app_id), as_json=as_json)


@apps.command()
@click.argument("app_id", metavar="ID")
@click.option(
    "--cancel-jobs/--keep-jobs",
    default=None,
    help="Cancel its waiting jobs, or keep them as failed when they come due.",
)
@click.option("--purge", is_flag=True, help="Delete its cache and storage too.")
@with_app
def uninstall(
    app: Operated, *, app_id: str, cancel_jobs: bool | None, purge: bool, as_json: bool
) -> None:
    """Remove an installation.

    What a job that still runs writes after --purge is deleted when it has ended.
    """
    installed = app.apps
    if cancel_jobs is None and (waiting := installed.waiting_jobs(app_id)):
        what = f"{waiting:,} job{'s wait' if waiting > 1 else ' waits'}"
        if not is_person():
            raise click.UsageError(f"{what}: say --cancel-jobs or --keep-jobs.")
        choice = click.Choice(["cancel", "keep"])
        cancel_jobs = click.prompt(f"{what}; what becomes of them?", type=choice) == "cancel"
    remains = installed.uninstall(app_id, cancel_jobs=cancel_jobs, purge=purge)
    if as_json:
        print_json({"id": app_id, "cancelled": remains.cancelled, "purged": remains.purged})
        return
    click.echo(f"{app_id} is uninstalled.")
    if remains.cancelled is not None:
        click.echo(f"Waiting jobs that were cancelled: {remains.cancelled:,}.")
    if remains.purged is not None:
        click.echo(f"Keys of its cache and storage that were deleted: {remains.purged:,}.")


def is_person() -> bool:
    """Tell whether there is somebody to ask."""
    return sys.stdin.isatty()


def _described(app: InstalledApp) -> dict[str, Any]:
    entry, definition = app.entry, app.definition
    return {
        "id": entry.id,
        "module": entry.module,
        "app": definition.name if definition else None,
        "state": _state(app),
        "error": str(app.error) if app.error else None,
        "enabled": entry.enabled,
        "team_id": entry.team_id,
        "order": entry.order,
        "version": entry.version,
        "from": _origin(app),
        "config": dict(app.masked_config),
        "jobs": list(definition.jobs) if definition else [],
        "hooks": list(definition.hooks) if definition else [],
    }


def _state(app: InstalledApp) -> str:
    if not app.entry.enabled:
        return "disabled"
    return "broken" if app.error else "enabled"


def _origin(app: InstalledApp) -> str:
    return "store" if app.entry.is_stored else "posthog_jobs_apps"


def _show(
    app: InstalledApp, *, as_json: bool, metrics: Mapping[str, float | None] | None = None
) -> None:
    described = {**_described(app), **({"metrics": metrics} if metrics else {})}
    if as_json:
        print_json(described)
    else:
        print_fields({name: value for name, value in described.items() if value is not None})
