"""Apps that are installed, configured, disabled and removed while workers run, in every pool."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.jobs.execution import LoopCaller
from posthog_jobs.meta.cache import Cache
from posthog_jobs.meta.redis_stores import RedisCache
from tests.notes import notes, wait_for
from tests.pace import Pace
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess

MODULE = "tests.samples.recorder"


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"posthog_jobs_apps": {}}


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_the_life_of_an_app(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """A worker that was started before takes every change, and the very next job sees it."""
    apps = jobs_app.apps
    apps.install(MODULE, id="new", config={"n": 0}, team_id=7)
    jobs = jobs_app.meta_for("new").jobs

    for n in range(6):
        jobs.record(n).run_now()
        (note,) = wait_for(jobs_app, "record", n + 1, app_id="new")[n:]
        assert note["config"] == {"n": n}, "the config of the time at which it was sent"
        assert note["ready"], "setup_plugin ran before"
        apps.configure("new", {"n": n + 1})
    # each process that had set up one of the six versions tears it down, though it is idle
    setups = len(notes(jobs_app, "setup_plugin", "new"))
    wait_for(jobs_app, "teardown_plugin", setups, app_id="new")

    jobs_app.capture({"event": "hook", "team_id": 7})
    wait_for(jobs_app, "on_event", app_id="new")
    registered = jobs_app.control.inspect(timeout=1).registered
    assert "posthog_jobs.recorder.record" in str(poll("an answer", registered))

    apps.disable("new")
    jobs_app.send_task("posthog_jobs.recorder.record", ("new", "disabled"))
    celery_setup.worker.assert_log_exists("'new' is disabled; enable it: celery -A posthog_jobs")
    apps.enable("new")
    jobs.record("enabled").run_now()
    assert wait_for(jobs_app, "record", 7, app_id="new")[6]["payload"] == "enabled"

    cache = jobs_app.meta_for("new").cache
    setups = len(notes(jobs_app, "setup_plugin", "new"))
    apps.uninstall("new", cancel_jobs=True)
    poll(
        "teardown",
        lambda: setups == sum(n["what"] == "teardown_plugin" for n in cache.lrange("notes", 0, -1)),
    )
    jobs_app.send_task("posthog_jobs.recorder.record", ("new", "removed"))
    celery_setup.worker.assert_log_exists("'new' was uninstalled")
    poll("no task", lambda: (tasks := registered()) and "recorder" not in str(tasks))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_changes_beside_running_jobs(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Changes one after another, while jobs run, lose no job; none runs after its teardown."""
    apps = jobs_app.apps
    apps.install(MODULE, id="new", config={"n": 0})
    jobs = jobs_app.meta_for("new").jobs
    jobs.slow({"seconds": 2}).run_now()
    wait_for(jobs_app, "slow started", app_id="new")

    for n in range(200):
        jobs.record(n).run_now()
        if n % 10 == 0:
            apps.configure("new", {"n": n + 1})

    ran = wait_for(jobs_app, "record", 200, app_id="new")
    assert sorted(note["payload"] for note in ran) == list(range(200))
    for note in ran:  # n was set to 1 after the job 0 was sent, to 11 after the job 10, …
        assert note["config"]["n"] >= (note["payload"] - 1) // 10 * 10 + 1
    (ended,) = wait_for(jobs_app, "slow ended", app_id="new")
    kept = Cache("new", RedisCache(jobs_app.server), LoopCaller("test"))  # of a disabled app too
    apps.disable("new")

    def noted(what: str) -> list[dict[str, Any]]:
        return [note for note in kept.lrange("notes", 0, -1) if note["what"] == what]

    setups = len(noted("setup_plugin"))
    poll("all teardowns", lambda: len(noted("teardown_plugin")) == setups)
    (torn,) = (
        note
        for note in noted("teardown_plugin")
        if note["pid"] == ended["pid"] and note["config"] == {"n": 0}
    )
    assert torn["at"] >= ended["at"], "not while a job runs with it"
    assert "Traceback" not in celery_setup.worker.logs()


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_purge_beside_a_running_job(jobs_app: PostHogJobs, tmp_path: Path, pool: str) -> None:
    """Uninstall --purge: what a job, and then teardown_plugin, writes after it goes too."""
    gate = tmp_path / "gate"
    jobs_app.apps.install("tests.samples.gated", id="new", config={"gate": str(gate)})
    jobs_app.apps.install(MODULE, id="other")
    jobs_app.meta_for("other").storage.set("kept", 1)
    jobs_app.meta_for("new").jobs.write(1).run_now()
    wait_for(jobs_app, "write", app_id="new")

    assert jobs_app.apps.uninstall("new", purge=True).purged == 1
    assert not Path(f"{gate}.torn").exists(), "the job runs on"
    gate.touch()

    poll("the teardown", Path(f"{gate}.torn").exists)
    redis, keys = jobs_app._broker.connected()

    def left() -> Any:
        return [key for key in redis.keys(f"{keys.prefix}*") if b":new" in key]

    poll("nothing is left", lambda: not left())
    assert jobs_app.meta_for("other").storage.get("kept") == 1


class TestWithoutTurns:
    """A worker whose store is not on its broker, as with RabbitMQ, asks for the version."""

    @pytest.fixture
    def settings(self, default_redis_broker: RedisProcess) -> dict[str, Any]:
        return {"posthog_jobs_redis_url": default_redis_broker.url}

    @pytest.mark.parametrize("pool", ["prefork"])
    def test_changes_are_taken_within_a_second(self, jobs_app: PostHogJobs, pool: str) -> None:
        """A new app's first job runs at once; a change is there, and an old one torn down, soon."""
        jobs_app.apps.install(MODULE, id="new", config={"n": 0})
        jobs = jobs_app.meta_for("new").jobs
        jobs.record(0).run_now()
        (first,) = wait_for(jobs_app, "record", app_id="new")
        assert first["config"] == {"n": 0}

        with Pace() as pace:
            changed = time.time()
            jobs_app.apps.configure("new", {"n": 1})

            (torn,) = wait_for(jobs_app, "teardown_plugin", app_id="new")
            assert torn["at"] - changed < pace.allow(2)
        poll("a second later", lambda: time.time() - changed > 1)
        jobs.record(1).run_now()
        assert wait_for(jobs_app, "record", 2, app_id="new")[1]["config"] == {"n": 1}


@pytest.mark.parametrize("pool", ["threads"])
def test_redis_restarts_under_a_worker(
    jobs_app: PostHogJobs, default_redis_broker: RedisProcess, pool: str
) -> None:
    """Redis away: afterwards the worker goes on with what was installed, and takes changes."""
    jobs_app.apps.install(MODULE, id="new", config={"n": 0})
    jobs_app.meta_for("new").jobs.record(0).run_now()
    wait_for(jobs_app, "record", app_id="new")

    default_redis_broker.kill()  # with all its data
    default_redis_broker.start()
    default_redis_broker.ready()
    jobs_app.send_task("posthog_jobs.recorder.record", ("new", "kept"))
    noted = Cache("new", RedisCache(jobs_app.server), LoopCaller("test"))
    poll("the job", lambda: "kept" in str(noted.lrange("notes", 0, -1)))

    jobs_app.apps.install(MODULE, id="new", config={"n": 1})
    jobs_app.meta_for("new").jobs.record("changed").run_now()
    poll("the change", lambda: "'n': 1" in str(noted.lrange("notes", 0, -1)))
