"""`meta.logger` and `meta.attachments`: what an installation's code sees of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.celery import PostHogJobs

if TYPE_CHECKING:
    from pathlib import Path

APP = """
def process_event(event, meta):
    meta.logger.warning("event")
    return event

def work(payload, meta):
    meta.logger.warning("sync %s", payload, extra={"more": 1, "app_id": "forged"})

async def work_later(payload, meta):
    meta.logger.warning("async %s", payload)

jobs = {"work": work, "workLater": work_later}
"""
FORMAT = "%(app_id)s %(team_id)s %(job)s %(task_id)s %(message)s"


@pytest.fixture
def app(tmp_path: Path) -> PostHogJobs:
    (tmp_path / "__init__.py").write_text(APP)
    config = [
        {"key": "url", "type": "string", "name": "URL"},
        {"key": "key", "type": "attachment", "name": "Key"},
    ]
    (tmp_path / "plugin.json").write_text(json.dumps({"name": "speaker", "config": config}))
    contents = base64.b64encode(b"\xff\0").decode()
    key = {"content_type": "text/plain", "file_name": "key.txt", "contents": contents}
    one = {"module": str(tmp_path), "team_id": 1, "config": {"url": "http://x", "key": key}}
    two = {"module": str(tmp_path), "team_id": 2}
    apps = {"one": one, "two": two}
    return PostHogJobs(config_source={"broker_url": "memory://", "posthog_jobs_apps": apps})


def run(app: PostHogJobs, name: str, *args: Any) -> str:
    """Run a task as a worker's tracer does; return its id."""
    return str(app.tasks[name].apply(args=args, task_id=f"id-of-{name}").id)


def shown(caplog: pytest.LogCaptureFixture) -> list[str]:
    formatter = logging.Formatter(FORMAT)
    return [
        formatter.format(record)
        for record in caplog.records
        if record.name == "posthog_jobs.apps.speaker"
    ]


def test_each_record_says_who_speaks(app: PostHogJobs, caplog: pytest.LogCaptureFixture) -> None:
    """Logger: a record has app id, team, job and task id, from sync and async code."""
    sync = run(app, "posthog_jobs.speaker.work", "one", 1)
    later = run(app, "posthog_jobs.speaker.workLater", "two", 2)

    assert shown(caplog) == [
        f"one 1 work {sync} [one] sync 1",
        f"two 2 workLater {later} [two] async 2",
    ]
    assert caplog.records[0].__dict__["more"] == 1


def test_a_record_factory_with_the_same_fields(
    app: PostHogJobs, caplog: pytest.LogCaptureFixture
) -> None:
    """Logger: what makes the process' records may set our fields, and ours count."""
    make = logging.getLogRecordFactory()

    def marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        vars(record).update(dict.fromkeys(("task_id", "job", "app_id", "team_id"), "another"))
        return record

    logging.setLogRecordFactory(marked)
    try:
        sync = run(app, "posthog_jobs.speaker.work", "one", 1)
    finally:
        logging.setLogRecordFactory(make)

    assert shown(caplog) == [f"one 1 work {sync} [one] sync 1"]
    assert "posthog_jobs_fields" not in vars(caplog.records[0])


def test_outside_of_a_job(app: PostHogJobs, caplog: pytest.LogCaptureFixture) -> None:
    """Logger: a hook's record names its task and no job; outside of a worker there is neither."""
    run(app, "posthog_jobs.speaker.work", "one", 1)
    caplog.clear()
    task_id = run(app, "posthog_jobs.capture", {"event": "x", "team_id": 2, "properties": {}})
    app.process_event({"event": "x"})

    async def use() -> None:
        app.meta_for("one").logger.warning("script")

    asyncio.run(use())

    assert shown(caplog) == [
        f"two 2 None {task_id} [two] event",
        "one 1 None None [one] event",
        "one 1 None None [one] script",
    ]


def test_attachments(app: PostHogJobs) -> None:
    """Attachments: a config's files are in meta.attachments, and in meta.config are none."""
    one, two = app.meta_for("one"), app.meta_for("two")

    attachment = one.attachments["key"]
    assert attachment.contents == b"\xff\0"
    assert (attachment.content_type, attachment.file_name) == ("text/plain", "key.txt")
    assert dict(one.config) == {"url": "http://x"}
    assert dict(two.attachments) == {}
    for mapping in (one.config, one.attachments):
        with pytest.raises(TypeError):
            mapping["key"] = 1  # type: ignore[index]
