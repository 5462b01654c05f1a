"""What a worker's metrics are made of: bounded labels, and numbers of the broker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis import Redis

from posthog_jobs.broker.envelope import parse_task_name, task_name
from posthog_jobs.broker.redis import Keys
from posthog_jobs.operate import metrics
from posthog_jobs.operate.metrics import OTHER, UNKNOWN, MetricLabels, read_backlog
from tests.overdue import bring_forward

if TYPE_CHECKING:
    import pytest

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess

RECORD = "posthog_jobs.recorder.record"


def test_the_numbers(
    idle_app: PostHogJobs, idle_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backlog: by app id and job, the first due first; what is beyond the limit is in the sum."""
    client, keys = Redis.from_url(idle_server.url), Keys()
    assert read_backlog(client, keys, {}).waiting == []
    jobs, began = idle_app.meta_for("recorder").jobs, time.monotonic()
    for hours in (1, 1, 2):
        jobs.record(1).run_in(hours, "hours")
    idle_app.meta_for("second").jobs.record(1).run_in(2, "hours")
    jobs.record_nothing().run_in(3, "hours")
    jobs.record(1).run_now()
    client.zadd(keys.leases, {"worker": 1})
    client.hset(keys.inflight("worker"), "1", "…")
    monkeypatch.setattr(metrics, "_PARTITIONS", 2)
    bring_forward(client, "recorder", "record", 3600 + 2)

    found = read_backlog(client, keys, {"celery": ["celery", "none"]})

    first, second = found.waiting
    assert (first.app_id, first.task, first.count, first.due) == ("recorder", RECORD, 3, 2)
    assert 1 < first.lag < 2 + time.monotonic() - began
    assert (second.app_id, second.task, second.count) == ("second", RECORD, 1)
    assert (second.due, second.lag) == (0, 0)
    assert found.waiting_in_all == 5
    assert (found.fetched, found.queued, found.failed) == (1, {"celery": 1}, 0)


def test_labels_are_bounded() -> None:
    """Labels: of what is installed, and never more than so many."""
    installed = {("teapot", "look"), ("teapot", "pour"), ("kettle", "boil")}
    labels = MetricLabels(lambda app, job: (app, job) in installed, most=2)

    assert labels.of("teapot", "look") == ("teapot", "look")
    assert labels.of("strange", "look") == UNKNOWN
    assert labels.of("teapot", "pour") == ("teapot", "pour")
    assert labels.of("kettle", "boil") == OTHER

    installed.clear()
    assert labels.of("teapot", "look") == ("teapot", "look"), "time series go on"
    assert labels.of("kettle", "boil") == UNKNOWN


def test_names_of_tasks() -> None:
    """Labels: the names of app and job are in the task's name; a hook's task has none."""
    assert parse_task_name(task_name("teapot", "look")) == ("teapot", "look")
    for name in ("posthog_jobs.on_event", "their.own.task", "", "posthog_jobs.a.b.c"):
        assert parse_task_name(name) is None
