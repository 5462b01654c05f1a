"""Names that users, other processes and older versions know, each list in one place.

None may change or go unless users are told; what is added to the code is added here, too.
"""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from click.testing import CliRunner
from prometheus_client import generate_latest

import posthog_jobs
import posthog_jobs.testing
from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.transport.transport import redis_server
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import ConfigurationError
from posthog_jobs.operate.metrics import Metrics
from tests.conftest import ROOT

if TYPE_CHECKING:
    from types import ModuleType

PUBLIC = {
    "posthog_jobs": {
        "JobHandle", "Jobs", "Meta", "PluginEvent", "PostHogJobsError", "RetryError", "RetryPolicy",
        "capture", "job", "meta_for", "process_event", "process_events",
    },
    "posthog_jobs.testing": {
        "ABSENT", "AppTester", "Clock", "FailedJob", "JobsRecorder", "ScheduledJob", "create_event",
        "create_identify", "create_meta", "create_pageview",
    },
}  # fmt: skip

#: Celery's subcommands, and what each can be told.
COMMANDS = {
    "apps": {"configure", "disable", "enable", "install", "list", "show", "uninstall"},
    "jobs": {
        "cancel", "discard", "doctor", "failed", "forecast", "list", "replay", "reschedule", "run",
        "run-now", "show", "stop-embedded",
    },
}  # fmt: skip

TASKS = {
    "posthog_jobs.capture", "posthog_jobs.export_events", "posthog_jobs.flush_export",
    "posthog_jobs.on_event", "posthog_jobs.run_every_day", "posthog_jobs.run_every_hour",
    "posthog_jobs.run_every_minute",
}  # fmt: skip

HEADERS = {
    "posthog_jobs_app", "posthog_jobs_due", "posthog_jobs_error", "posthog_jobs_if_waiting",
    "posthog_jobs_kept_key", "posthog_jobs_key", "posthog_jobs_replay_of", "posthog_jobs_sent",
    "posthog_jobs_waited", "posthog_jobs_away",
}  # fmt: skip

#: The doctor's question to workers, the table of `meta.storage` in a database, what the fields of a
#: log record travel as, and a transport option.
OTHER_NAMES = {
    "posthog_jobs_report",
    "posthog_jobs_storage",
    "posthog_jobs_fields",
    "posthog_jobs_writes",
}

SETTINGS = {
    "posthog_jobs_apps", "posthog_jobs_default_team_id", "posthog_jobs_enqueue_timeout",
    "posthog_jobs_geoip_path", "posthog_jobs_max_deliveries", "posthog_jobs_max_failures",
    "posthog_jobs_max_payload_bytes", "posthog_jobs_metrics_port", "posthog_jobs_posthog_host",
    "posthog_jobs_posthog_project_key", "posthog_jobs_redis_url", "posthog_jobs_storage_url",
}  # fmt: skip

#: Behind `global_keyprefix`; what a name is made of in <>.
KEYS = {
    "posthog_jobs:apps", "posthog_jobs:cache:<app_id>:<key>", "posthog_jobs:deliveries:<task_id>",
    "posthog_jobs:due:<partition>", "posthog_jobs:export:<app_id>",
    "posthog_jobs:export_state:<app_id>", "posthog_jobs:failed",
    "posthog_jobs:failed:<partition>", "posthog_jobs:failed_at", "posthog_jobs:failed_dropped",
    "posthog_jobs:failed_messages", "posthog_jobs:failed_parts", "posthog_jobs:heads",
    "posthog_jobs:inflight:<owner>", "posthog_jobs:keyed", "posthog_jobs:leases",
    "posthog_jobs:metrics:<app_id>", "posthog_jobs:promoted", "posthog_jobs:replay:<task_id>",
    "posthog_jobs:sent:<name>:<queue>", "posthog_jobs:storage:<app_id>",
    "posthog_jobs:tick:<app_id>",
    "posthog_jobs:tick_claim:<app_id>:<hook>:<seconds>", "posthog_jobs:ticks:<app_id>",
    "posthog_jobs:waiting", "posthog_jobs:wake", "posthog_jobs:wake:<queue>",
    # kombu's own, which ours and stock workers share
    "<queue>", "unacked_index",
}  # fmt: skip

METRICS = {
    "posthog_jobs_broker_up", "posthog_jobs_due", "posthog_jobs_duration_seconds",
    "posthog_jobs_failed_kept", "posthog_jobs_failed_total", "posthog_jobs_fetched",
    "posthog_jobs_in_flight", "posthog_jobs_lag_seconds", "posthog_jobs_lateness_seconds",
    "posthog_jobs_promoted_total", "posthog_jobs_queued", "posthog_jobs_ran_total",
    "posthog_jobs_retried_total", "posthog_jobs_waiting",
}  # fmt: skip


@pytest.mark.parametrize("module", [posthog_jobs, posthog_jobs.testing])
def test_public_names(module: ModuleType) -> None:
    """Public: just these names, and each can be imported."""
    assert set(module.__all__) == PUBLIC[module.__name__]
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_celery_app() -> None:
    """`celery -A posthog_jobs` and `from posthog_jobs.celery import app` find one app."""
    found = import_module("posthog_jobs.celery").app

    assert isinstance(found, Celery)
    assert isinstance(found, PostHogJobs)
    assert found.main == "posthog_jobs"


def test_entry_points(pytestconfig: pytest.Config) -> None:
    """Entry points: Celery's subcommands with theirs, and the plugin of pytest."""
    commands = {entry.name: entry for entry in entry_points(group="celery.commands")}
    for name, expected in COMMANDS.items():
        command = commands[name].load()
        assert set(command.commands) == expected
        assert CliRunner().invoke(command, ["--help"]).exit_code == 0
    (plugin,) = (entry for entry in entry_points(group="pytest11") if entry.name == "posthog_jobs")
    assert hasattr(plugin.load(), "posthog_app")


def test_tasks() -> None:
    """Tasks: ours have these names, and a job has its app's and its own."""
    apps = {"kettle": "tests.wire.kettle"}
    app = PostHogJobs(config_source={"posthog_jobs_apps": apps, "posthog_jobs_redis_url": "x://"})

    assert {name for name in app.tasks if name.startswith("posthog_jobs.")} == TASKS
    assert app.tasks["posthog_jobs.kettle.brewAsync"].name == "posthog_jobs.kettle.brewAsync"


def test_headers() -> None:
    """Headers: these are the names in the code that are no settings and no metrics."""
    written = {
        node.value
        for file in (ROOT / "posthog_jobs").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch("posthog_jobs_[a-z_]*[a-z]", node.value)
    }

    assert written - SETTINGS - METRICS | {"posthog_jobs_due"} == HEADERS | OTHER_NAMES


def test_settings() -> None:
    """Settings: who mistypes one is told of these."""
    app = PostHogJobs(config_source={"posthog_jobs_nonsense": 1})
    with pytest.raises(ConfigurationError, match="unknown setting posthog_jobs_nonsense") as raised:
        app.settings  # noqa: B018  # it is read at its first use

    named = set(re.findall("posthog_jobs_[a-z_]+", str(raised.value).partition("settings are")[2]))
    assert named == SETTINGS


@pytest.mark.parametrize("prefix", ["", "{one}"])
def test_keys(prefix: str) -> None:
    """Redis: keys have these names, behind the prefix that kombu is told of."""
    keys = Keys(prefix)
    found = [key for name, key in vars(keys).items() if "prefix" not in name]
    for name, member in vars(Keys).items():
        if callable(member) and not name.startswith("_"):
            _, *names = signature(member).parameters.values()
            given = [f"<{parameter.name}>" for parameter in names]
            found.append(getattr(keys, name)(*given))
            if any(parameter.default is None for parameter in names):
                found.append(getattr(keys, name)())
    flat = {each for one in found for each in ([one] if isinstance(one, str) else one)}

    expected = {f"{prefix}{name}" for name in KEYS - {"posthog_jobs:wake:<queue>"}}
    assert flat == expected | {f"{prefix}posthog_jobs:wake:{prefix}<queue>"}


def test_metrics(idle_app: PostHogJobs) -> None:
    """Metrics: what is served has these names."""
    idle_app.meta_for("recorder").jobs.record(1).run_in(1, "hour")
    broker = redis_server(idle_app.connection_for_write)
    metrics = Metrics(idle_app, broker, lambda: {"celery": ["celery"]})

    served = generate_latest(metrics.registry).decode()

    names = set(re.findall(r"^# TYPE (\S+) ", served, re.MULTILINE))
    assert {name for name in names if not name.endswith("_created")} == METRICS
