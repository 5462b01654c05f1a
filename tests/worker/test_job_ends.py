"""How a job ended, and the line that the log has of it: the pure parts."""

from __future__ import annotations

import json
import logging
import pickle
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from hypothesis import given
from hypothesis import strategies as st

from posthog_jobs.broker.failure import Reason
from posthog_jobs.errors import AppDisabledError, RetriesExhaustedError
from posthog_jobs.worker import job_ends
from posthog_jobs.worker.job_ends import JobEnd, Result, SentAgain, result_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def end(**fields: object) -> JobEnd:
    known: Mapping[str, object] = {
        "app_id": "eu",
        "app": "export",
        "job": "retryRequest",
        "id": "id-1",
        "attempt": 1,
        "lateness": 0.0031,
        "duration": 0.12,
        "result": Result.SUCCEEDED,
    }
    return JobEnd(**{**known, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "result", "reason"),
    [
        (SentAgain(5.0), Result.RETRIED, None),
        (Retry(), Result.RETRIED, None),
        (Ignore(), Result.REVOKED, None),
        (WorkerLostError(), Result.LOST, None),
        (Terminated(9), Result.LOST, None),
        (SystemExit(1), Result.LOST, None),
        (Reject(requeue=True), Result.LOST, None),
        (Reject(), Result.FAILED, Reason.EXCEPTION),
        (ValueError(), Result.FAILED, Reason.EXCEPTION),
        (TimeLimitExceeded(1), Result.FAILED, Reason.TIME_LIMIT),
        (RetriesExhaustedError("x"), Result.FAILED, Reason.RETRIES_EXHAUSTED),
        (AppDisabledError("x"), Result.FAILED, Reason.APP_DISABLED),
    ],
)
def test_what_an_exception_means(
    error: BaseException, result: Result, reason: Reason | None
) -> None:
    """Ends: what ended a delivery says what became of it, and why."""
    assert result_of(error)[:2] == (result, reason)


def test_a_retry_crosses_processes_with_its_delay() -> None:
    """Ends: a pool's process pickles what a task raised."""
    assert result_of(pickle.loads(pickle.dumps(SentAgain(7.5)))) == (Result.RETRIED, None, 7.5)


@pytest.mark.parametrize(
    ("fields", "level", "line"),
    [
        ({}, "INFO", "lateness=0.003 duration=0.120 result=succeeded"),
        (
            {"result": Result.FAILED, "reason": Reason.TIME_LIMIT, "lateness": None},
            "WARNING",
            'lateness=- duration=0.120 result=failed reason="time limit"',
        ),
        (
            {"result": Result.RETRIED, "delay": 5},
            "INFO",
            "lateness=0.003 duration=0.120 result=retried delay=5",
        ),
    ],
)
def test_the_line(
    caplog: pytest.LogCaptureFixture, fields: dict[str, object], level: str, line: str
) -> None:
    """Log: key=value, in one order; what is no plain word is quoted as JSON."""
    caplog.set_level("INFO", "posthog_jobs.jobs")

    job_ends.write(end(**fields))

    (record,) = caplog.records
    assert record.levelname == level
    assert record.getMessage() == (
        f"job=retryRequest app=export app_id=eu id=id-1 attempt=1 {line}"
    )


def test_the_level_decides(caplog: pytest.LogCaptureFixture) -> None:
    """Log: by the worker's log level there is a line for what failed alone, or for all."""
    caplog.set_level("WARNING", "posthog_jobs.jobs")
    job_ends.write(end())
    job_ends.write(end(result=Result.FAILED, reason=Reason.EXCEPTION))

    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_record_has_the_fields(caplog: pytest.LogCaptureFixture) -> None:
    """Log: formatters that write JSON find each field, as a number where it is one."""
    caplog.set_level("INFO", "posthog_jobs.jobs")

    job_ends.write(end(result=Result.FAILED, reason=Reason.EXCEPTION))

    (record,) = caplog.records
    names = ("job", "app", "app_id", "task_id", "attempt", "lateness", "duration")
    assert json.loads(json.dumps([vars(record)[name] for name in names])) == [
        "retryRequest", "export", "eu", "id-1", 1, 0.0031, 0.12,
    ]  # fmt: skip
    assert (vars(record)["result"], vars(record)["reason"]) == ("failed", "exception")


@given(st.text())
def test_no_app_id_makes_two_lines(app_id: str) -> None:
    """Log: whatever a stranger's message says, it is one printable word."""
    word = job_ends._word(app_id)

    assert len(word.splitlines()) == 1
    assert word.isprintable()
    assert word.startswith('"') or " " not in word


def test_celerys_lines_about_other_tasks_stay(caplog: pytest.LogCaptureFixture) -> None:
    """Log: Celery's INFO lines about our tasks are left out, and nothing else of Celery's is."""
    job_ends.replace_celerys()
    job_ends.replace_celerys()
    celerys = logging.getLogger("celery.app.trace")
    caplog.set_level("INFO", celerys.name)
    for name in ("posthog_jobs.teapot.look", "their.task"):
        for level in (logging.INFO, logging.ERROR):
            celerys.log(level, "%(name)s", {"name": name}, extra={"data": {"name": name}})
    celerys.info("no task")

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "posthog_jobs.teapot.look"),
        ("INFO", "their.task"),
        ("ERROR", "their.task"),
        ("INFO", "no task"),
    ]
