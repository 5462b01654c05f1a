"""The labels of metrics are bounded, whatever messages say."""

from __future__ import annotations

from posthog_jobs.operate.metric_labels import OTHER, UNKNOWN, MetricLabels
from posthog_jobs.worker.tasks import parse_task_name, task_name


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
