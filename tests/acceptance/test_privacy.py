"""Payloads, configs and secrets are seen by nobody who does not ask for them by `show`."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from posthog_jobs.operate.cli.apps import apps
from posthog_jobs.operate.cli.jobs import jobs
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs

SECRET = "phx-hunter2-secret"
MARK = "payload-of-mrs-miller"
CONFIG = "config-of-mrs-miller"


@pytest.fixture
def settings() -> dict[str, Any]:
    config = {"api_key": SECRET, "url": CONFIG}
    return {"posthog_jobs_apps": {"teller": {"module": "tests.samples.teller", "config": config}}}


@pytest.fixture
def default_worker_command(pool: str, default_worker_command: list[str]) -> list[str]:
    return [*(word.replace("INFO", "DEBUG") for word in default_worker_command), "-E"]


class Listener:
    """What Flower and `celery events` get to see, as text."""

    def __init__(self, app: PostHogJobs) -> None:
        self.seen: list[dict[str, Any]] = []
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self.seen.append})
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.count("worker-heartbeat")

    def _listen(self) -> None:
        self._receiver.capture(limit=None, timeout=60)

    def count(self, kind: str, least: int = 1) -> None:
        poll(kind, lambda: [event["type"] for event in self.seen].count(kind) >= least)

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(60)


def printed(app: PostHogJobs, group: Any, *arguments: str) -> str:
    """Return what a command prints."""
    context = type("Context", (), {"app": app})()
    result = CliRunner().invoke(group, arguments, obj=context)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_nothing_is_told(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str) -> None:
    """A debug log, events, inspect, lists and the report have no payload, config or secret."""
    listener = Listener(jobs_app)
    meta = jobs_app.meta_for("teller")
    payload = {"name": MARK, "numbers": list(range(50))}
    meta.jobs.work(payload).run_now()
    meta.jobs.work(payload).run_in(1, "day")
    failing = meta.jobs.fail(payload).run_now()
    meta.jobs.later(payload).run_now()
    # as a stock producer does it, whose own description of the arguments quotes them
    jobs_app.send_task("posthog_jobs.teller.work", args=["teller", payload])
    meta.jobs.wait(payload).run_now()
    poll("a job under way", lambda: meta.cache.get("waits"))
    running = jobs_app.control.inspect(timeout=2)
    answers: list[Any] = [
        running.active(), running.reserved(), running.scheduled(), running.conf(),
        running.query_task(failing.id), running.stats(), running.report(),
    ]  # fmt: skip
    meta.cache.set("done", 1)
    poll("both", lambda: meta.cache.get("worked") == 2)
    poll("a failed job", lambda: jobs_app.failures.count() == 1)
    poll("what waits", lambda: jobs_app.schedule.count() == 2)
    listener.count("task-failed")
    listener.count("task-received", 5)
    listener.close()
    lists = [
        printed(jobs_app, jobs, "list"), printed(jobs_app, jobs, "list", "--json"),
        printed(jobs_app, jobs, "failed"), printed(jobs_app, jobs, "failed", "--json"),
        printed(jobs_app, apps, "list"), printed(jobs_app, apps, "list", "--json"),
    ]  # fmt: skip
    shown = [
        printed(jobs_app, jobs, "failed", "show", failing.id),
        printed(jobs_app, apps, "show", "teller"),
        printed(jobs_app, apps, "show", "teller", "--json"),
    ]
    told = {
        "log": celery_setup.worker.logs(),
        "events": repr(listener.seen),
        "inspect": json.dumps(answers, default=repr),
        "lists": "\n".join(lists),
        "report": jobs_app.bugreport(),
        "objects": repr([meta, jobs_app.settings, jobs_app.failures.get(failing.id),
                         jobs_app.schedule.list(), list(jobs_app.runtime.installations)]),
    }  # fmt: skip
    for where, text in told.items():
        for what in (MARK, CONFIG, SECRET):
            lines = [line for line in text.splitlines() if what in line]
            assert not lines, f"{where} tells {what}: {lines[0][:500]}"
    # who asks for a payload, or a config, gets it; for a secret nobody can
    assert MARK in shown[0]
    assert CONFIG in shown[1]
    assert SECRET not in "\n".join(shown)
    kept = jobs_app.failures.get(failing.id)
    assert kept is not None
    assert kept.message == "the server does not take ********"
    assert SECRET not in kept.traceback
