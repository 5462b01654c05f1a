from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.errors import (
    AppDisabledError,
    AppLoadError,
    AppSetupError,
    EventError,
    PayloadError,
    RetryError,
    UnknownAppError,
    UnknownJobError,
)
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.settings import Settings
from posthog_jobs.testing.memory import memory_stores
from posthog_jobs.worker.runtime import Runtime
from tests.recorder import Recorder

if TYPE_CHECKING:
    from pathlib import Path

APP = """
called = []

def note(*args, **kwargs):
    called.append((args, kwargs))

def with_payload(payload, meta): note(payload, meta)
async def with_payload_async(payload, meta): note(payload, meta)
def without(meta): note(meta)
async def without_async(meta): note(meta)
def either(payload="none", meta=None): note(payload, meta)
async def either_async(payload="none", meta=None): note(payload, meta)
def anything(*args): note(*args)

jobs = {
    "withPayload": with_payload, "withPayloadAsync": with_payload_async,
    "without": without, "withoutAsync": without_async,
    "either": either, "eitherAsync": either_async, "anything": anything,
    "called": lambda meta: called,
}

def setup_plugin(meta):
    if "error" in meta.config:
        raise meta.config["error"]
    meta.global_["ready"] = True

def process_event(event, meta):
    assert meta.global_["ready"]
    event["properties"].setdefault("by", []).append(meta.app_id)
    return event

async def on_event(event, meta):
    if event["event"] == "later":
        raise meta.config["retry"]
    note(meta.app_id)
"""


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    (tmp_path / "teapot.py").write_text(APP)
    (tmp_path / "bad.py").write_text("raise RuntimeError")
    module = str(tmp_path / "teapot.py")
    apps = {
        "one": {"module": module, "config": {"retry": RetryError("not now")}},
        "two": {"module": module, "team_id": 2},
        "off": {"module": module, "enabled": False},
        "failed": {"module": module, "team_id": 3, "config": {"error": ValueError("no url")}},
        "bad": str(tmp_path / "bad.py"),
    }
    return Runtime(Settings(apps=apps), Recorder(), memory_stores(lambda: datetime.now(UTC)))


def called(runtime: Runtime) -> list[Any]:
    function = runtime.installations.get("one").definition.jobs["called"].function
    calls: list[Any] = function(None)
    return calls


@pytest.mark.parametrize("payload", [None, 0, "", [], {}, False, {"a": 1}])
@pytest.mark.parametrize(
    "job", ["withPayload", "withPayloadAsync", "either", "eitherAsync", "anything"]
)
def test_a_payload_comes_before_meta(runtime: Runtime, job: str, payload: Any) -> None:
    """Arguments: x(None), x(0), x(""), x([]) run as fn(payload, meta)."""
    runtime.job("teapot", job, "one", payload).run()

    assert called(runtime) == [((payload, runtime.meta("one")), {})]
    assert called(runtime)[0][0][0] is payload


@pytest.mark.parametrize("job", ["without", "withoutAsync", "anything"])
def test_meta_alone(runtime: Runtime, job: str) -> None:
    """Arguments: x() runs as fn(meta)."""
    runtime.job("teapot", job, "one", ABSENT).run()

    assert called(runtime) == [((runtime.meta("one"),), {})]


@pytest.mark.parametrize("job", ["either", "eitherAsync"])
def test_a_default_for_the_payload(runtime: Runtime, job: str) -> None:
    """Arguments: x() of fn(payload=…, meta=…) gets meta as meta, and its own default."""
    runtime.job("teapot", job, "two").run()

    assert called(runtime) == [(("none", runtime.meta("two")), {})]


@pytest.mark.parametrize(
    ("job", "app_id", "error", "message"),
    [
        ("teapot.without", "gone", UnknownAppError, "no app is installed under the id 'gone'"),
        ("teapot.without", "off", AppDisabledError, "app id 'off' is disabled"),
        ("teapot.without", "bad", AppLoadError, "app id 'bad': importing"),
        ("teapot.without", "failed", AppSetupError, "ValueError: no url"),
        (
            "kettle.without",
            "one",
            UnknownAppError,
            "now an install of 'teapot', not of 'kettle'",
        ),
        ("teapot.renamed", "one", UnknownJobError, "no job 'renamed' any more; it exports: wit"),
    ],
)
def test_a_job_that_cannot_run(
    runtime: Runtime, job: str, app_id: str, error: type[Exception], message: str
) -> None:
    """App gone: what is missing is named before anything runs, so that the job can be kept."""
    app_name, job_name = job.split(".")

    with pytest.raises(error, match=message):
        runtime.job(app_name, job_name, app_id)
    assert called(runtime) == []


def test_which_jobs_are_exported(runtime: Runtime) -> None:
    """Task shape: a job is known by app name and job name; a disabled app alone exports none."""
    assert runtime.is_exported("teapot", "without")
    assert not runtime.is_exported("teapot", "renamed")
    assert not runtime.is_exported("bad", "without")


def test_meta_from_outside(runtime: Runtime) -> None:
    """Access: a meta to trigger jobs with runs no setup, and is the one that jobs get."""
    meta = runtime.meta("one")
    assert meta.global_ == {}

    runtime.job("teapot", "without", "one").run()

    assert called(runtime)[0][0][0] is meta
    assert meta.global_ == {"ready": True}


def test_an_event_meets_the_hooks_of_its_team(runtime: Runtime) -> None:
    """process_event: the enabled installations of the event's team, set up, and no others."""
    for team_id, by in ((1, ["one"]), (2, ["two"])):
        result = runtime.process_event({"event": "x", "team_id": team_id})
        assert result == {"event": "x", "team_id": team_id, "properties": {"by": by}}
    assert runtime.process_event({"event": "x", "team_id": 9}) == {
        "event": "x",
        "team_id": 9,
        "properties": {},
    }


@pytest.mark.parametrize(
    ("event", "error"), [({}, EventError), ({"event": "x", "y": {1}}, PayloadError)]
)
def test_no_event(runtime: Runtime, event: Any, error: type[Exception]) -> None:
    """process_event: what is no event is refused, and no hook has run."""
    with pytest.raises(error):
        runtime.process_event(event)
    assert runtime.meta("one").global_ == {}


def test_on_event_of_one_installation(runtime: Runtime) -> None:
    """on_event: runs for the event's team, or for the one installation that has to retry it."""
    event = {"event": "x", "properties": {}, "team_id": 2}

    runtime.on_event(event, lambda *_: pytest.fail("nothing to retry"))
    runtime.on_event_again("one", event).run()

    assert called(runtime) == [(("two",), {}), (("one",), {})]
    with pytest.raises(RetryError, match="not now"):
        runtime.on_event_again("one", {**event, "event": "later"}).run()
    with pytest.raises(UnknownAppError):
        runtime.on_event_again("gone", event)
