"""How the workers and apps of the fixture are configured, to record it and to read it."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from celery.bin.base import CLIContext
from click.testing import CliRunner

if TYPE_CHECKING:
    from celery import Celery

KETTLE: Final = "tests.wire.kettle"
SHOP: Final = "tests.wire.shop"


def settings(*, water: bool) -> dict[str, Any]:
    """Return the workers' configuration; without water jobs fail."""
    config: dict[str, Any] = {"water": water}
    broken = config if water else {**config, "setup": "fails"}
    soon, late = ({**config, "exportEventsBufferSeconds": seconds} for seconds in ("1", "30"))
    apps: dict[str, Any] = {
        "kettle": {"module": KETTLE, "config": config},
        "broken": {"module": KETTLE, "config": broken, "team_id": 7},
        "shop": {"module": SHOP, "config": soon, "team_id": 2},
        "closed": {"module": SHOP, "config": late, "team_id": 3},
    }
    return {
        "posthog_jobs_apps": apps,
        "posthog_jobs_max_deliveries": 2,
        "broker_transport_options": {"visibility_timeout": 60 if water else 2},
        "task_default_queue": "celery",
        "task_routes": {"posthog_jobs.kettle.brewAsync": {"queue": "teapots"}},
    }


def listed(app: Celery) -> list[dict[str, Any]]:
    """Return what `celery -A posthog_jobs apps list` prints."""
    command = entry_points(group="celery.commands")["apps"].load()
    context = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner().invoke(command, ["list", "--json"], obj=context)
    apps: list[dict[str, Any]] = json.loads(result.stdout)["apps"]
    return apps
