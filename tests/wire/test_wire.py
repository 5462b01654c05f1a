"""What an earlier version wrote to Redis is listed, steered, replayed and run by this one.

`wire.json` was made by `record.py`; the tests lean on public behaviour alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import redis

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import AppDisabledError, AppRemovedError, ReplayError, UnknownAppError
from tests.conftest import ROOT
from tests.servers.nodes import RedisProcess, WorkerProcess, poll
from tests.wire import snapshot
from tests.wire.payloads import PAYLOADS
from tests.wire.settings import KETTLE, listed, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RECORDED = snapshot.read()
WAITING: dict[str, Any] = RECORDED["waiting"]
FAILED: dict[str, Any] = RECORDED["failed"]
#: Task id → name of its payload, or `absent`, or what else it was sent for.
SENT: dict[str, str] = RECORDED["sent"]

#: Failed for a reason that a replay does not mend.
HOPELESS = ("unknown job", "payload no longer accepted", "undecodable message")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    yield from RedisProcess.launch(tmp_path_factory.mktemp("wire")).serve()


@pytest.fixture
def client(process: RedisProcess) -> Any:
    """The server, with what was recorded."""
    client = redis.Redis.from_url(process.url)
    client.flushall()
    snapshot.load(client, RECORDED)
    return client


@pytest.fixture
def app(process: RedisProcess, client: Any) -> PostHogJobs:
    return PostHogJobs(config_source={**settings(water=True), "broker_url": process.url})


def left(client: Any, *names: str) -> list[bytes]:
    """Return which keys of ours there are whose names begin so."""
    return [key for name in names for key in client.keys(f"posthog_jobs:{name}*")]


def waiting(app: PostHogJobs, *, is_worked_on: bool = False) -> dict[str, Any]:
    """Return what waits, as the recording has it; page by page."""
    found: list[Any] = []
    cursor = None
    while True:
        page = app.schedule.list(limit=20, cursor=cursor)
        found += page.jobs
        cursor = page.cursor
        if cursor is None:
            break
    for job in found:
        shown = app.schedule.get(job.id)
        assert shown == job or (shown is None and is_worked_on)  # it may have come due meanwhile
    return {
        job.id: {
            "app_id": job.app_id, "job": job.job, "due": job.due.isoformat(), "key": job.key,
            "queue": job.queue, "attempt": job.attempt, "last_error": job.last_error,
            "body": job.body.decode(),
        }
        for job in found
    }  # fmt: skip


def test_the_recording_is_whole() -> None:
    """The recording has each reason to fail, each payload, and each kind of key."""
    assert {job["reason"] for job in FAILED.values()} == {
        "exception", "retries exhausted", "time limit", "worker lost too often", "app disabled",
        "app removed", "app broken", "unknown app", "unknown job", "undecodable message",
        "payload no longer accepted",
    }  # fmt: skip
    assert set(SENT.values()) > {*PAYLOADS, "absent"}
    kinds = {entry["key"].split(":")[1] for entry in RECORDED["keys"] if ":" in entry["key"]}
    assert kinds >= {
        "apps", "cache", "deliveries", "due", "export", "export_state", "failed", "failed_at",
        "failed_messages", "failed_parts", "heads", "inflight", "keyed", "leases", "metrics",
        "promoted", "storage", "ticks", "waiting",
    }  # fmt: skip


def test_what_waits_is_listed(app: PostHogJobs) -> None:
    """Schedule: each job is listed as it was, in the order in which it is due, and counted."""
    found = waiting(app)

    assert found == WAITING
    assert [job["due"] for job in found.values()] == sorted(job["due"] for job in found.values())
    assert app.schedule.count() == app.schedule.forecast().total == len(WAITING)
    for (app_id, job), count in Counter((w["app_id"], w["job"]) for w in WAITING.values()).items():
        assert app.schedule.count(app_id=app_id, job=job) == count
        assert len(app.schedule.list(app_id=app_id, job=job).jobs) == count


def test_what_waits_is_moved_and_cancelled(app: PostHogJobs, client: Any) -> None:
    """Schedule: each job can be moved; then cancelled, after which nothing of it is left."""
    moved = datetime(2098, 1, 1, 0, 0, 0, 7000, tzinfo=UTC)
    for task_id in WAITING:
        assert app.schedule.reschedule(task_id, moved).value == "rescheduled"

    expected = {name: {**job, "due": moved.isoformat()} for name, job in WAITING.items()}
    assert waiting(app) == expected
    for task_id in WAITING:
        assert app.schedule.cancel(task_id).value == "cancelled"
    assert left(client, "due:", "heads", "waiting", "keyed") == []


def test_what_waits_is_sent_now(app: PostHogJobs, client: Any) -> None:
    """Schedule: each job can be sent to its queue; then it has left, and is not cancelled."""
    queues = {job["queue"] for job in WAITING.values()}
    before = sum(client.llen(queue) for queue in queues)

    for task_id in WAITING:
        assert app.schedule.run_now(task_id).value == "queued"

    assert sum(client.llen(queue) for queue in queues) == before + len(WAITING)
    assert app.schedule.count() == 0
    assert {app.schedule.cancel(task_id).value for task_id in WAITING} == {"promoted"}


def test_keys_are_taken(app: PostHogJobs) -> None:
    """Keys: a job under a key that one waits under takes its place, or leaves it that."""
    (task_id,) = (name for name, job in WAITING.items() if job["key"] == "Ключ ☕")
    note = app.meta_for("kettle").jobs.note

    kept = note("new", key="Ключ ☕", if_waiting="keep").run_in(1, "hour")
    job = app.schedule.get(task_id)
    assert job is not None
    assert (kept.id, job.due.isoformat()) == (task_id, WAITING[task_id]["due"])
    taken = note("new", key="Ключ ☕").run_in(1, "hour")
    assert app.schedule.get(task_id) is None
    assert app.schedule.get(taken.id) is not None
    assert app.schedule.count() == len(WAITING)


def test_what_failed_is_shown(app: PostHogJobs) -> None:
    """Failures: each is listed, counted and shown as it was, history too."""
    found = [*app.failures.list(limit=100).jobs, *app.failures.list(replayed=True).jobs]

    assert [job.id for job in found] == list(FAILED)
    for listed_job in found:
        job, kept = app.failures.get(listed_job.id), FAILED[listed_job.id]
        assert job is not None
        assert {
            "app_id": job.app_id, "job": job.job, "reason": job.reason.value,
            "exception": job.exception, "message": job.message, "worker": job.worker,
            "attempts": job.attempts, "key": job.key, "queue": job.queue,
            "due": job.due and job.due.isoformat(), "replay_of": job.replay_of,
            "ended": job.ended.isoformat(), "replayed_as": job.replayed_as,
            "traceback": job.traceback,
            "body": None if job.body is None else job.body.decode(),
        } == kept  # fmt: skip
    still_open = [job for job in FAILED.values() if job["replayed_as"] is None]
    assert app.failures.count() == len(still_open)
    counts = Counter((job["app_id"], job["job"], job["reason"]) for job in still_open)
    assert counts == {
        (kind.app_id, kind.job, kind.reason.value): kind.count for kind in app.failures.counts()
    }


def test_what_failed_is_replayed_and_discarded(app: PostHogJobs, client: Any) -> None:
    """Failures: each that is open can be sent again, once; each can be discarded."""
    for task_id, job in FAILED.items():
        if job["replayed_as"] is not None or job["reason"] == "undecodable message":
            with pytest.raises(ReplayError):
                app.failures.replay(task_id)
            continue
        count = client.llen(job["queue"])
        new_id = app.failures.replay(task_id)
        assert client.llen(job["queue"]) == count + 1
        assert app.failures.get(task_id).replayed_as == new_id  # type: ignore[union-attr]

    assert app.failures.count() == 1
    for task_id in FAILED:
        assert app.failures.discard(task_id)
    assert [key for key in left(client, "failed") if not key.endswith(b"dropped")] == []


def test_who_is_installed(app: PostHogJobs) -> None:
    """Store: each installation is as it was, with its config; who was removed is known."""
    assert listed(app) == [
        {**each, "state": "enabled", "error": None} if each["id"] == "broken" else each
        for each in RECORDED["apps"]
    ]
    assert dict(app.meta_for("stored").config) == {
        "water": True, "sugar": Decimal("1.5"), "milk": False, "names": ["茶", {}],
    }  # fmt: skip
    with pytest.raises(AppDisabledError):
        app.meta_for("off")
    for app_id in ("gone", "purged"):
        with pytest.raises(AppRemovedError):
            app.meta_for(app_id)
    with pytest.raises(UnknownAppError):
        app.meta_for("nobody")
    app.apps.configure("stored", {"milk": 1})
    assert app.meta_for("stored").config["milk"] == 1
    app.apps.install(KETTLE, id="gone")
    assert app.meta_for("gone").cache.get("left") == 1


def test_what_apps_keep_is_read(app: PostHogJobs) -> None:
    """Meta: cache, storage, metrics and cursor have what was kept, equal in value and type."""
    meta = app.meta_for("kettle")
    for name, value in PAYLOADS.items():
        for found in (meta.cache.get(f"value: {name}"), meta.storage.get(f"value: {name}")):
            assert (found, type(found)) == (value, type(value)), name
    assert meta.cache.get("for a while") == "茶"
    assert meta.cache.incr("count") == 2
    assert meta.cache.lrange("a list", 0, -1) == ["☕", {"two": None}, 1]
    assert meta.utils.cursor.increment("page", 1) == 43
    assert app.apps.metrics("kettle") == {"cups": 2.5, "hottest": 98, "coldest": -1}
    meta.metrics["cups"].increment(1)
    assert app.apps.metrics("kettle")["cups"] == 3.5


@pytest.fixture
def start_worker(process: RedisProcess, tmp_path: Path) -> Iterator[Callable[[], WorkerProcess]]:
    workers: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        config = "".join(f"{name} = {value!r}\n" for name, value in settings(water=True).items())
        (tmp_path / "celeryconfig.py").write_text(config)
        command = [sys.executable, "-m", "celery", "-A", "tests.wire.tasks", "worker", "-c2"]
        options = ["--pool", "threads", "-Q", "celery,teapots", "-l", "INFO", "--without-mingle"]
        env = {"PYTHONPATH": str(ROOT), "CELERY_BROKER_URL": process.url}
        workers.append(WorkerProcess(tmp_path, [*command, *options], env))
        workers[-1].ready()
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def ran(app: PostHogJobs) -> list[dict[str, Any]]:
    """Return what the apps have noted."""
    ids = {each["id"] for each in listed(app)}
    return [note for app_id in ids for note in app.meta_for(app_id).cache.lrange("ran", 0, -1)]


def test_all_of_it_runs(
    app: PostHogJobs, client: Any, start_worker: Callable[[], WorkerProcess]
) -> None:
    """A worker runs, once and with its payload, what is queued, due, in flight or replayed."""
    expected = {
        task_id: payload
        for task_id, payload in SENT.items()
        if task_id not in FAILED
        and payload in {*PAYLOADS, "absent"}
        and (task_id not in WAITING or WAITING[task_id]["due"] < "2040")
    }
    app.apps.enable("off")
    for app_id in ("gone", "nobody"):
        app.apps.install(KETTLE, id=app_id, config={"water": True}, team_id=9)
    for task_id, job in FAILED.items():
        if job["replayed_as"] is None and job["reason"] not in HOPELESS:
            expected[app.failures.replay(task_id)] = SENT[task_id]
    for tick in app.schedule.list(job="run_every_hour").jobs:
        app.schedule.run_now(tick.id)
    dead = left(client, "inflight:")

    start_worker()

    def all_ran() -> bool:
        notes = ran(app)
        done = {note.get("id") for note in notes}
        others = Counter(note["what"] for note in notes)
        return bool(
            done >= expected.keys()
            and others["plain.add"] == 2
            and others["on_event"] == 2
            and others["export_events"] == 2
            and others["run_every_hour"] >= 3
        )

    poll("all that is due", all_ran)
    notes = ran(app)
    jobs = {note["id"]: note for note in notes if "id" in note}
    for task_id, name in expected.items():
        found, payload = jobs[task_id]["payload"], PAYLOADS.get(name)
        assert (found, type(found)) == (payload, type(payload)), (task_id, name)
    counts = Counter(note["id"] for note in notes if "id" in note)
    assert {task_id: count for task_id, count in counts.items() if count > 1} == {}
    hooks: dict[str, list[Any]] = {}
    for note in notes:
        hooks.setdefault(note["what"], []).append(note["payload"])
    assert sorted(hooks["plain.add"]) == [7, 9]
    assert sorted(event["event"] for event in hooks["on_event"]) == ["tea ☕ 1", "tea ☕ 4"]
    assert sorted(hooks["export_events"]) == [["tea ☕ 2"], ["tea ☕ 3"]]
    assert {note["key"] for note in jobs.values()} >= {"Käse 🧀", "late", "moved", "fetched"}
    assert {job.reason.value for job in app.failures.list().jobs} == set(HOPELESS)
    assert set(waiting(app, is_worked_on=True)) >= {
        name for name, job in WAITING.items() if job["due"] > "2040"
    }

    def nothing_left() -> bool:
        return not left(client, "deliveries:") and not client.exists(*dead)

    poll("the end of what counts and holds messages", nothing_left)
