"""The examples do what they say, as processes that a newcomer starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import celeryconfig
from posthog_jobs.celery import PostHogJobs
from tests.conftest import ROOT
from tests.endpoint import Answer, Endpoint
from tests.servers.nodes import ENVIRONMENT, poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.nodes import RedisProcess


def start_demo(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**ENVIRONMENT, "TMPDIR": str(folder), "CELERY_BROKER_URL": "redis://127.0.0.1:1/"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509  # no threads are under way here
    )


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which what runs in the background ignores


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that have to do with a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            cwd = str((process / "cwd").readlink())
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command or str(folder) in cwd or f"={folder}" in environment:
            found.append(command)
    return found


def test_the_demo_finds_the_teapot(tmp_path: Path) -> None:
    """Demo: it ends with the teapot and exit code 0 by itself, and leaves nothing behind."""
    demo = start_demo(tmp_path)

    output = demo.communicate(timeout=110)[0]

    assert demo.returncode == 0, output
    assert output.rstrip().endswith("found the teapot!")
    assert output.count("answered 503") == 3
    assert output.count("answered 418") == 1
    assert list(tmp_path.iterdir()) == []
    poll("the end of all processes", lambda: processes_of(tmp_path) == [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_cleans_up_when_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """Demo: after Ctrl-C, or SIGTERM, no process and no file is left."""
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "answered 503" in line:
            break

    os.kill(demo.pid, number)

    assert demo.wait(60) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert list(tmp_path.iterdir()) == []
    poll("the end of all processes", lambda: processes_of(tmp_path) == [])


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(Answer(status=503)) as server:
        yield server


def test_all_of_celeryconfig_can_run(idle_server: RedisProcess) -> None:
    """The apps that this folder's celeryconfig.py names can be loaded, with their configs."""
    apps = celeryconfig.posthog_jobs_apps
    app = PostHogJobs(config_source={"broker_url": idle_server.url, "posthog_jobs_apps": apps})

    assert {each.entry.id: each.error for each in app.apps.list()} == dict.fromkeys(apps)
    assert all(each.definition for each in app.apps.list())


class TestRetryExport:
    """The app `examples.retry_export` in a real worker."""

    @pytest.fixture
    def settings(self, endpoint: Endpoint) -> dict[str, Any]:
        export = {"module": "examples.retry_export", "config": {"url": endpoint.url}}
        return {"posthog_jobs_apps": {"export": export}}

    def test_a_failed_request_is_retried_later(
        self, jobs_app: PostHogJobs, endpoint: Endpoint
    ) -> None:
        """Retry export: an event that the endpoint refuses is sent again after 3 s."""
        jobs_app.capture({"event": "sign up", "properties": {"plan": "free"}})

        endpoint.wait_for(2)

        first, second = (request.json for request in endpoint.requests)
        assert first == second
        assert first["properties"] == {"plan": "free"}
        poll("the count", lambda: jobs_app.meta_for("export").cache.get("exported") == 1)
