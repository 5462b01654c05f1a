"""The log of jobs: one line per end, in every pool, in the words of Celery's own settings."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from posthog_jobs.redaction import LONGEST_TEXT
from tests.conftest import APPS
from tests.notes import wait_for
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs

SECRET = "hunter2"
#: The app id of a stranger's message; it would be a second line.
FORGED = "x\nINFO!posthog_jobs.jobs!job=forged id=forged"
FORMAT = "%(levelname)s!%(name)s!%(message)s"
#: The characters of an exception's text.
LOUD = 3_000_000


@pytest.fixture
def settings(settings: dict[str, Any], pool: str) -> dict[str, Any]:
    limited = {"module": "tests.samples.limited", "config": {"pool": pool}}
    apps = {**APPS, "limited": limited, "wordy": {"module": "tests.samples.wordy", "team_id": 3}}
    more = {"worker_log_format": FORMAT, "include": ["tests.marked_records"]}
    return {**settings, "posthog_jobs_apps": apps, **more}


def ends(log: str) -> list[dict[str, str]]:
    """Return the fields of each line about the end of a job, with its level."""
    found = re.findall(r"^(\w+)!posthog_jobs\.jobs!(.*)$", log, re.MULTILINE)
    return [
        {"level": level, **dict(word.split("=", 1) for word in shlex.split(line))}
        for level, line in found
    ]


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_one_line_per_end(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str) -> None:
    """Log: each end of a job is one line with all that it says, in place of Celery's INFO lines.

    Also where others set fields of the records, and where what an app raises is far too long.
    """
    jobs, began = jobs_app.meta_for("recorder").jobs, time.monotonic()
    late = jobs.record({"password": SECRET}).run_in(300, "milliseconds").id
    now = jobs.slow({"seconds": 0.2, "password": SECRET}).run_now().id
    failed = jobs.fail(SECRET).run_now().id
    retried = jobs.fail_once(SECRET).run_now().id
    wordy = jobs_app.meta_for("wordy").jobs
    spoken = wordy.speak().run_now().id
    loud, louder = wordy.shout(LOUD).run_now().id, wordy.shout_again(LOUD).run_now().id

    def all_ended() -> dict[str, dict[str, str]] | None:
        found = {end["id"]: end for end in ends(celery_setup.worker.logs())}
        ours = {late, now, failed, retried, spoken, loud, louder}
        return found if ours <= found.keys() and found[louder]["attempt"] == "2" else None

    found = poll("all ends", all_ended)
    passed = time.monotonic() - began

    log = celery_setup.worker.logs()
    assert len([end for end in ends(log) if end["id"] in (late, now, failed, retried)]) == 4
    assert found[late]["job"] == "record"
    assert {(found[one]["app"], found[one]["app_id"]) for one in (late, now, failed, retried)} == {
        ("recorder", "recorder")
    }
    assert {end["attempt"] for end in found.values() if end["id"] != louder} == {"1"}
    assert 0 <= float(found[late]["lateness"]) < passed - 0.29
    assert 0 <= float(found[now]["lateness"]) < passed
    assert 0.2 <= float(found[now]["duration"]) < passed
    assert (found[now]["level"], found[now]["result"]) == ("INFO", "succeeded")
    assert (found[failed]["level"], found[failed]["reason"]) == ("WARNING", "exception")
    assert (found[retried]["result"], found[retried]["delay"]) == ("retried", "5")
    assert not re.search(r"Task posthog_jobs\.\S+ (received|succeeded|ignored)", log)
    assert log.count("ERROR!celery.app.trace!Task posthog_jobs.recorder.fail[") == 1
    assert SECRET not in log
    assert found[spoken]["result"] == "succeeded"
    assert "WARNING!posthog_jobs.apps.wordy![wordy] a word" in log
    assert max(map(len, log.splitlines())) < 2 * LONGEST_TEXT, "the app's text is cut"
    for task_id in (loud, louder):
        kept = poll("what is kept", partial(jobs_app.failures.get, task_id))
        assert len(kept.message) + len(kept.traceback) < 2 * LONGEST_TEXT
        assert "characters are left out" in kept.traceback
        assert "tests/samples/wordy.py" in kept.traceback
    assert "the end of it" in log


@pytest.mark.parametrize("pool", ["prefork"])
def test_ends_that_the_job_does_not_decide(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Log: a job is one line, too, when it is lost, revoked, terminated or over its time limit."""
    jobs = jobs_app.meta_for("recorder").jobs
    lost = jobs.hold("lost").run_now().id
    (started,) = wait_for(jobs_app, "hold started")
    os.kill(started["pid"], signal.SIGKILL)
    over_limit = jobs_app.meta_for("limited").jobs.too_slow().run_now().id
    wait_for(jobs_app, "hold started", 2)
    jobs_app.meta_for("recorder").cache.set("let go", 1)
    terminated = jobs.slow({"seconds": 3600}).run_now().id
    wait_for(jobs_app, "slow started")
    jobs_app.control.revoke(terminated, terminate=True, signal="SIGKILL")

    def results(task_id: str) -> list[str]:
        found = [end for end in ends(celery_setup.worker.logs()) if end["id"] == task_id]
        return [end.get("reason", end["result"]) for end in found]

    poll("the time limit", lambda: results(over_limit) == ["time limit"])
    poll("the end after the loss", lambda: results(lost) == ["lost", "succeeded"])
    poll("the termination", lambda: results(terminated) == ["revoked"])


def test_messages_of_strangers(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup) -> None:
    """Log: what a message says forges no line, and what is refused has a line of its own."""
    stranger = Celery(broker=jobs_app.conf.broker_url, set_as_current=False)
    stranger.send_task("posthog_jobs.recorder.record", (FORGED, SECRET))
    headers = {"posthog_jobs_due": 10**400, "posthog_jobs_app": [SECRET]}
    stranger.send_task("posthog_jobs.on_event", (), headers=headers)
    stranger.send_task("posthog_jobs.capture", (SECRET,))
    stranger.close()
    jobs_app.capture({"event": "go", "properties": {"password": SECRET}})

    (end,) = poll("the end of what is right", lambda: ends(celery_setup.worker.logs()))

    assert (end["job"], end["result"]) == ("posthog_jobs.capture", "succeeded")
    assert celery_setup.worker.logs().count("A message that cannot be run is kept") == 3
    log = celery_setup.worker.logs()
    assert "Unrecoverable" not in log
    assert SECRET not in "".join(line for line in log.splitlines() if "!posthog_jobs.jobs!" in line)
