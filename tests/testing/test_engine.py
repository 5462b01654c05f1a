"""The testing kit has no engine: what an app author imports is small, and quick."""

from __future__ import annotations

import json
import subprocess
import sys

ENGINES = ("celery", "kombu", "redis", "sqlalchemy", "amqp", "billiard", "geoip2", "posthog")

MOST_MODULES = 40

CODE = """
import json, sys
from posthog_jobs.testing import AppTester

def work(payload, meta):
    meta.cache.set("seen", payload)
    meta.storage.set("seen", payload)
    meta.metrics.count.increment()
    meta.utils.cursor.increment("at")
    meta.posthog.capture("worked")
    meta.jobs.work(None).run_in(1, "day")

app = AppTester({"jobs": {"work": work}, "metrics": {"count": "sum"}})
app.meta.jobs.work({"a": 1}).run_now()
app.run_due()
app.run_due(after=(1, "day"))
assert app.metrics == {"count": 2} and app.meta.cache.get("seen") is None
print(json.dumps(sorted(sys.modules)))
"""


def test_a_test_of_an_app_loads_no_engine() -> None:
    """Testing: an app runs in a process that has neither Celery nor Redis, nor half of our own."""
    ran = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60
    )

    loaded = json.loads(ran.stdout)
    assert {name.partition(".")[0] for name in loaded} & set(ENGINES) == set()
    ours = [name for name in loaded if name.startswith("posthog_jobs")]
    assert [name for name in ours if ".broker" in name or ".operate" in name] == []
    assert len(ours) <= MOST_MODULES, ours


def test_the_public_names_load_no_engine() -> None:
    """Import: what app code imports, and all of its types, loads neither Celery nor Redis."""
    names = "Jobs, JobHandle, Meta, PluginEvent, PostHogJobsError, RetryError, RetryPolicy, job"
    code = f"import sys; from posthog_jobs import {names}; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert {name.partition(".")[0] for name in ran.stdout.split()} & set(ENGINES) == set()
