"""What ends workers, or cannot be read, is kept as failed; the fleet lives on."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.broker.envelope import WAITED_HEADER, replay_message
from posthog_jobs.broker.failure import Reason
from tests.conftest import APPS
from tests.notes import notes, wait_for
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.broker.failure import FailedJob
    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import WorkerProcess

every_pool = pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])

SECRET = "hunter2"
POISON = {
    **APPS,
    "poison": "tests.samples.poison",
    "off": {"module": "tests.samples.poison", "enabled": False},
}


@pytest.fixture
def lease() -> float:
    """Length of the lease, in seconds; for parametrizing."""
    return 60


@pytest.fixture
def settings(lease: float) -> dict[str, Any]:
    return {
        "posthog_jobs_apps": POISON,
        "posthog_jobs_max_deliveries": 2,
        "broker_transport_options": {"visibility_timeout": lease},
        "worker_lost_wait": 0.1,
    }


def failed(app: PostHogJobs, count: int) -> dict[str, FailedJob]:
    """Return what failed, by id, as soon as there are so many."""

    def enough() -> tuple[FailedJob, ...] | None:
        jobs = app.failures.list().jobs
        return jobs if len(jobs) >= count else None

    found = poll(f"{count} failed jobs", enough)
    return {job.id: job for job in found}


def body(*parts: object) -> str:
    return base64.b64encode(json.dumps(parts).encode()).decode()


def message(
    task: object = "posthog_jobs.poison.fine", task_id: object = "x", **changes: Any
) -> dict[str, Any]:
    """Return a good message, but for the changes."""
    headers = {
        "lang": "py", "task": task, "id": task_id, "retries": 0, "eta": None, "expires": None,
        "timelimit": [None, None], "root_id": task_id, "argsrepr": "()", "kwargsrepr": "{}",
    }  # fmt: skip
    headers |= changes.pop("headers", {})
    return {
        "body": body(["poison", 1], {}, {}),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "delivery_tag": "t", "correlation_id": "c", "delivery_mode": 2, "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "body_encoding": "base64", **changes.pop("properties", {}),
        },
        **changes,
    }  # fmt: skip


#: What is wrong → the message, which stands in the queue as it is.
NASTY: dict[str, bytes | str | dict[str, Any] | list[Any]] = {
    "bytes": b"\xff\x00\x01",
    "no JSON": "{",
    "empty": "",
    "a list": [1],
    "nested deep": "[" * 100_000,
    "unknown type": '{"__type__": "nobody", "__value__": 1}',
    "no properties": {"body": "", "headers": {}},
    "headers a list": {"body": "", "headers": [1], "properties": {}},
    "delivery info a string": message(properties={"delivery_info": "x"}),
    "body a number": message(body=5),
    "body no base64": message(body="%%%a"),
    "body of an unknown encoding": message(properties={"body_encoding": "rot13"}),
    "body no JSON": message(body=base64.b64encode(b"{").decode()),
    "protocol 1 without a task": {**message(body=base64.b64encode(b"[]").decode()), "headers": {}},
    "body of a bad type": message(
        body=body(["poison", {"__type__": "datetime", "__value__": 5}], {}, {})
    ),
    "no body": message(body=None),
    "pickle": message(**{"content-type": "application/x-python-serialize"}),
    "yaml": message(**{"content-type": "application/x-yaml"}),
    "no content type": message(**{"content-type": None}),
    "compressed by nobody": message(headers={"compression": "rot13"}),
    "task a list": message(task=["x"]),
    "task a number": message(task=5),
    "task null": message(task=None),
    "id a list": message(task_id=["x"]),
    "id null": message(task_id=None),
    "id a lone surrogate": message(task_id="\ud800", body=body(["poison"], {"a": 1}, {})),
    "nobody's task": message("os.system"),
    "payload a number": message(body=body()),
    "arguments a number": message(body=body(5, {}, {})),
    "three arguments": message(body=body(["poison", 1, 2], {}, {})),
    "no argument": message(body=body([], {}, {})),
    "named arguments": message(body=body(["poison"], {"payload": 1}, {})),
    "app id a number": message(body=body([5], {}, {})),
    "app id a dict": message(body=body([{}], {}, {})),
    "kwargs a list": message(body=body(["poison"], [], {})),
    "embed a list": message(body=body(["poison"], {}, [1])),
    "errbacks a string": message(body=body(["poison"], {}, {"errbacks": "x"})),
    "two parts": message(body=body(["poison"], {})),
    "eta no time": message(headers={"eta": "in a while"}),
    "eta a list": message(headers={"eta": [1]}),
    "eta with a key that is a list": message(
        body=body([5], {}, {}), headers={"eta": "2020-01-01T00:00:00", "posthog_jobs_key": [1]}
    ),
    "expires a list": message(headers={"expires": [1]}),
    "time limit a string": message(headers={"timelimit": "ab"}),
    "stamped a number": message(headers={"stamped_headers": 5}),
    "protocol 1 with a list": {
        **message(body=base64.b64encode(b'{"task": [1], "id": "x", "args": []}').decode()),
        "headers": {},
    },
}  # fmt: skip


@every_pool
def test_what_cannot_be_run_is_kept(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Poison: each message that cannot be run is kept as it was; the worker runs the others."""
    sent: dict[bytes, str] = {}
    with jobs_app.connection_for_write() as connection:
        client = connection.default_channel.client
        for number, (what, nasty) in enumerate(NASTY.items()):
            if isinstance(nasty, dict) and isinstance(nasty.get("headers"), dict):
                headers = nasty["headers"]
                if headers.get("id") == "x":
                    nasty = {**nasty, "headers": {**headers, "id": f"x{number}"}}  # noqa: PLW2901
            raw = (
                nasty
                if isinstance(nasty, bytes)
                else (nasty if isinstance(nasty, str) else json.dumps(nasty)).encode()
            )
            sent[raw] = what
            client.lpush("celery", raw)
    jobs_app.meta_for("poison").jobs.fine("alive").run_now()

    wait_for(jobs_app, "fine", app_id="poison")
    kept = failed(jobs_app, len(NASTY))

    raws = [jobs_app.failures.get(task_id).raw for task_id in kept]  # type: ignore[union-attr]
    assert sorted(sent[raw] for raw in raws) == sorted(NASTY)
    reasons = {job.reason for job in kept.values()}
    assert reasons == {Reason.UNDECODABLE, Reason.UNKNOWN_JOB}
    assert all(note["payload"] == "alive" for note in notes(jobs_app, "fine", "poison"))
    assert celery_setup.worker.container.status == "running"
    assert "Unrecoverable" not in celery_setup.worker.logs()
    assert SECRET not in celery_setup.worker.logs()


@every_pool
@pytest.mark.parametrize("lease", [2])
def test_what_ends_its_worker_is_kept_in_the_end(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """Poison: a job that kills its process is delivered again twice, then kept; others run."""
    jobs = jobs_app.meta_for("poison").jobs
    how = {jobs.die(how).run_now().id: how for how in ("kill", "abort")}
    for number in range(6):
        jobs.fine(number).run_now()
    worker = celery_setup.worker.container

    def both_are_kept() -> bool:
        # what supervises workers starts them again
        if worker.status == "exited":
            worker.start()
        return bool(jobs_app.failures.count() == 2)

    poll("both are kept", both_are_kept, 100)
    kept = failed(jobs_app, 2)

    assert kept.keys() == how.keys()
    for task_id, job in kept.items():
        assert (job.reason, job.app_id) == (Reason.WORKER_LOST, "poison")
        assert "was delivered again 2 times" in job.message
        ran = [note for note in notes(jobs_app, "die", "poison") if note["how"] == how[task_id]]
        # in a pool of threads both run in one process, and die of each other; and one that was
        # fetched, and not started, when the other ended its worker counts from its first start
        assert (1 if pool == "threads" else 2) <= len(ran) <= 3
    ready(worker)
    ran = wait_for(jobs_app, "fine", 6, app_id="poison")
    assert {note["payload"] for note in ran} == set(range(6)), "no neighbour is blamed"
    if pool == "prefork":  # a worker that dies between the two leaves a count, which expires
        poll("no count is left", lambda: not keys_of(jobs_app, "posthog_jobs:deliveries:*"))


@pytest.mark.parametrize("pool", ["prefork"])
def test_what_cannot_be_marked_in_kombus_way_is_counted(jobs_app: PostHogJobs, pool: str) -> None:
    """Poison: a message that has no place for kombu's marks is not delivered without end."""
    sent = {}
    for number, (changes, separators) in enumerate(
        [
            ({"properties": {"delivery_info": None}}, (",", ":")),
            ({"properties": {"delivery_info": None}}, (" ,", " : ")),
            ({}, ("\n,", "\n:")),
        ]
    ):
        raw = message("posthog_jobs.poison.die", str(number), **changes)
        raw["body"] = body(["poison", f"kill {number}"], {}, {})
        sent[str(number)] = json.dumps(raw, separators=separators)
    with jobs_app.connection_for_write() as connection:
        connection.default_channel.client.lpush("celery", *sent.values())

    kept = failed(jobs_app, len(sent))

    assert {task_id: job.reason for task_id, job in kept.items()} == dict.fromkeys(
        sent, Reason.WORKER_LOST
    )
    for task_id in sent:
        ran = [
            note for note in notes(jobs_app, "die", "poison") if note["how"] == f"kill {task_id}"
        ]
        assert 2 <= len(ran) <= 3
        whole = jobs_app.failures.get(task_id)
        assert whole is not None
        assert '"redelivered"' not in replay_message(whole.envelope, whole.id, "new")


def ready(worker: WorkerProcess) -> None:
    if worker.status == "exited":
        worker.start()
    worker.ready()


def keys_of(app: PostHogJobs, pattern: str) -> list[bytes]:
    with app.connection_for_read() as connection:
        found: list[bytes] = connection.default_channel.client.keys(pattern)
        return found


@every_pool
def test_each_reason(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str) -> None:
    """Failed jobs: each is kept with its reason, its exception, and what else is known of it."""
    jobs = jobs_app.meta_for("poison").jobs
    name = "posthog_jobs.poison"
    sent = {
        jobs.fail({"password": SECRET}).run_in(10, "milliseconds").id: (
            Reason.EXCEPTION,
            "ValueError",
        ),
        jobs.hungry().run_now().id: (Reason.EXCEPTION, "AppRaisedError"),
        jobs.interrupt().run_now().id: (Reason.EXCEPTION, "AppRaisedError"),
        jobs.leave().run_now().id: (Reason.EXCEPTION, "AppRaisedError"),
        jobs.mute().run_now().id: (Reason.EXCEPTION, "AppRaisedError"),
        jobs_app.send_task(f"{name}.without_payload", ("poison", 1)).id: (
            Reason.PAYLOAD_REFUSED,
            "PayloadRefusedError",
        ),
        jobs_app.send_task(f"{name}.fine", ("poison",)).id: (
            Reason.PAYLOAD_REFUSED,
            "PayloadRefusedError",
        ),
        jobs_app.send_task(f"{name}.fine", ("off", 1)).id: (
            Reason.APP_DISABLED,
            "AppDisabledError",
        ),
        jobs_app.send_task(f"{name}.fine", ("nobody", 1), headers={WAITED_HEADER: 13}).id: (
            Reason.UNKNOWN_APP,
            "UnknownAppError",
        ),
        jobs_app.send_task(f"{name}.gone", ("poison", 1), headers={WAITED_HEADER: 13}).id: (
            Reason.UNKNOWN_JOB,
            "UnknownJobError",
        ),
        jobs_app.send_task(f"{name}.not_now", ("poison",), retries=5).id: (
            Reason.RETRIES_EXHAUSTED,
            "RetriesExhaustedError",
        ),
    }

    kept = failed(jobs_app, len(sent))

    assert {task_id: (job.reason, job.exception) for task_id, job in kept.items()} == sent
    (first, *_, last) = (jobs_app.failures.get(task_id) for task_id in sent)
    assert first is not None
    assert last is not None
    assert last.app_id == "poison", "although the message does not say so in a header"
    assert (first.app_id, first.job, first.attempts) == ("poison", f"{name}.fail", 1)
    assert (first.queue, first.worker[:2]) == ("celery", "w@")
    assert first.message == f"cannot work with {{'password': '{SECRET}'}}"
    assert "in fail" in first.traceback
    assert first.body is not None
    assert json.loads(first.body)[0] == ["poison", {"password": SECRET}]
    assert first.due is not None
    assert first.started is not None
    assert first.due <= first.started <= first.ended
    assert last.attempts == 6
    assert "gave up after 6 attempts: the server is busy" in last.message
    poll("nothing is left in flight", lambda: not keys_of(jobs_app, "posthog_jobs:inflight:*"))


@pytest.mark.parametrize("pool", ["prefork"])
def test_time_limit(jobs_app: PostHogJobs, pool: str) -> None:
    """Failed jobs: what runs longer than its hard time limit is kept for that reason."""
    jobs = jobs_app.meta_for("recorder").jobs
    sent = jobs_app.send_task(
        "posthog_jobs.recorder.slow", ("recorder", {"seconds": 30}), time_limit=0.5
    )

    kept = failed(jobs_app, 1)[sent.id]

    assert (kept.reason, kept.exception) == (Reason.TIME_LIMIT, "TimeLimitExceeded")
    jobs.record(1).run_now()
    wait_for(jobs_app, "record")


def test_what_is_no_failure(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup) -> None:
    """Failed jobs: a job that succeeds, is run again later, or is revoked is not kept."""
    jobs = jobs_app.meta_for("recorder").jobs
    jobs.fail_once("x").run_now()
    revoked = jobs.record("revoked").run_in(1, "hour")
    jobs_app.control.revoke(revoked.id)
    inspect = jobs_app.control.inspect(timeout=1)
    poll("the worker has heard", lambda: revoked.id in str(inspect.revoked()))
    jobs_app.schedule.run_now(revoked.id)
    jobs.record("last").run_now()

    wait_for(jobs_app, "fail_once", 2)

    assert [note["payload"] for note in wait_for(jobs_app, "record")] == ["last"]
    assert jobs_app.failures.list().jobs == ()


class TestPlainTasks:
    """Celery tasks of the project's own."""

    @pytest.fixture
    def default_worker_command(self, default_worker_command: list[str]) -> list[str]:
        return [word.replace("posthog_jobs", "tests.plain") for word in default_worker_command]

    def test_one_that_is_acknowledged_late_is_kept(self, jobs_app: PostHogJobs) -> None:
        """Failed jobs: any task whose message is there when it fails; others as Celery has it."""
        jobs_app.send_task("plain.early", (0,))
        jobs_app.send_task("plain.late", (1,))
        sent = jobs_app.send_task("plain.late", (0,))
        mute = jobs_app.send_task("plain.mute")

        kept = failed(jobs_app, 2)

        assert kept.keys() == {sent.id, mute.id}
        assert (kept[mute.id].reason, kept[mute.id].exception) == (Reason.EXCEPTION, "MuteError")
        assert (kept[sent.id].app_id, kept[sent.id].exception) == ("", "ZeroDivisionError")
