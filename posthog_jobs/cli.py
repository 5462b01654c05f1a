"""`celery -A posthog_jobs jobs …`. Celery imports this for every command, so it imports little."""

from __future__ import annotations

import click


@click.group()
def jobs() -> None:
    """See to the jobs of PostHog apps, and to the server that they wait on."""


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
