"""What somebody tries who can write to the queue: each try is kept as failed, and has no effect."""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.broker import envelope
from posthog_jobs.broker.envelope import MAX_INFLATED, inflate
from posthog_jobs.broker.failure import FailedJob, Reason
from posthog_jobs.operate.cli.output import printable
from tests.mutations import SOON, TAKE, encoded, message, protocol_1
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from posthog_jobs.celery import PostHogJobs

OTHER = {"task": "celery.accumulate", "args": [1], "kwargs": {}, "options": {}}


def job(headers: dict[str, Any] | None = None, **embed: Any) -> dict[str, Any]:
    made = message(Random(), TAKE, ["sink", 1], headers=headers)
    made["body"][2].update(embed)
    return made


def plain(**embed: Any) -> dict[str, Any]:
    made = message(Random(), "celery.accumulate", [1])
    made["body"][2].update(embed)
    return made


def due(eta: str) -> dict[str, Any]:
    made = protocol_1(Random())
    made["body"]["eta"] = eta
    return made


def bomb() -> bytes:
    """A message of a hundred kilobytes that holds a hundred megabytes."""
    made = job({"compression": "application/x-gzip"})
    made["body"][0][1] = "x" * (MAX_INFLATED + 1)
    return encoded(made)


#: What is tried → the message.
TRIES: dict[str, Any] = {
    "a bomb": bomb,
    "callbacks": job(callbacks=[OTHER]),
    "errbacks": job(errbacks=[OTHER]),
    "a chain": job(chain=[OTHER]),
    "a chord": job(chord=OTHER),
    "a chain in the headers": job({"chain": [OTHER]}),
    "an attribute of the request": job(hostname="elsewhere"),
    "a stamp that is an option": job({"stamped_headers": ["queue"], "stamps": {"queue": "x"}}),
    "stamps of the wrong type": job({"stamped_headers": [["x"]]}),
    "an id of two lines": job({"id": "a\nTask forged[1] succeeded in 0s"}),
    "an id that steers a terminal": job({"id": "\x1b[2J"}),
    "an id with marks of the schedule": job({"id": "\x01\x02\x03"}),
    "a name of two lines": job({"shadow": "a\nb"}),
    "the name of a job": job({"shadow": "posthog_jobs.sink.other"}),
    "a long id": job({"id": "x" * 1000}),
    "another app in the headers": job({"posthog_jobs_app": "sink2"}),
    "no number of retries": job({"retries": float("nan")}),
    "retries below 0": job({"retries": -5}),
    "a time limit of no number": job({"timelimit": [float("nan"), None]}),
    "a moment that is none": job({"posthog_jobs_due": "now"}),
    "a chain of no tasks": plain(chain=[0.5]),
    "a callback without a name": plain(callbacks=[{**OTHER, "task": None}]),
    "an errback with no options": plain(errbacks=[{**OTHER, "options": [1]}]),
    "a chord that is no task": plain(chord={"x": 1}),
    "due after the last year": due("9999-12-31T23:59:59-23:59"),
    "due before the first year": due("0001-01-01T00:00:00+23:59"),
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"posthog_jobs_apps": {"sink": "tests.samples.sink", "sink2": "tests.samples.sink"}}


def test_tries_are_kept(jobs_app: PostHogJobs, celery_setup: CeleryTestSetup) -> None:
    """Bombs, other tasks, other queues, forged lines: kept as undecodable, and nothing is run."""
    with jobs_app.connection_for_write() as connection:
        client = connection.default_channel.client
        for made in TRIES.values():
            client.lpush("celery", made() if callable(made) else encoded(made))
        jobs_app.meta_for("sink").jobs.take(1).run_now()
        cache = jobs_app.meta_for("sink").cache
        poll("the good one", lambda: cache.get("taken"))
        poll("the tries", lambda: jobs_app.failures.count() == len(TRIES))
        assert cache.get("taken") == 1
        assert {found.reason for found in jobs_app.failures.list().jobs} == {Reason.UNDECODABLE}
        logs, kept = celery_setup.worker.logs, "is kept as failed, under the id"
        poll("a line for each", lambda: logs().count(kept) == len(TRIES))
        log = logs()
        assert "\nTask forged" not in log
        assert "\x1b" not in log


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_a_task_whose_end_fails_ends_no_worker(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """A task of Celery's own that was acknowledged, and then cannot go on as its message says."""
    made = job()
    made["headers"] |= {"task": "celery.accumulate", "id": "broken"}
    made["body"][2]["chain"] = [{"task": "x"}, {**OTHER, "options": {"countdown": "soon"}}]
    with jobs_app.connection_for_write() as connection:
        connection.default_channel.client.lpush("celery", encoded(made))
        jobs_app.meta_for("sink").jobs.take(1).run_now()
        poll("the next job", lambda: jobs_app.meta_for("sink").cache.get("taken"))
    if pool != "prefork":  # which has it in the log of a child
        celery_setup.worker.assert_log_exists("Task broken ran, and its end failed")
    assert celery_setup.worker.logs().count(" ready.") == 1


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_what_celerys_own_tasks_return_is_one_line(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup, pool: str
) -> None:
    """A result neither steers a terminal nor begins a line of the log."""
    jobs_app.send_task("celery.accumulate", ("\x1b[2J", "a\nTask forged[1] succeeded in 0s"))

    log = poll(
        "its end", lambda: (log := celery_setup.worker.logs()).count("] succeeded in") and log
    )

    assert "\\x1b[2J" in log
    assert "\x1b[2J" not in log
    assert "\nTask forged" not in log


def test_where_a_message_says_it_came_from_counts_for_nothing(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
) -> None:
    """A job that is sent again waits for the queue that it was fetched from, and for no other."""
    made = message(Random(), TAKE, ["nobody", 1])
    made["properties"]["delivery_info"] = {"exchange": "elsewhere", "routing_key": "there"}
    with jobs_app.connection_for_write() as connection:
        connection.default_channel.client.lpush("celery", encoded(made))
        poll("what waits", lambda: jobs_app.schedule.count() == 1)
        (waiting,) = jobs_app.schedule.list().jobs
        assert waiting.queue == "celery"
        assert connection.default_channel.client.exists("there") == 0


@pytest.mark.parametrize("task_id", ['a"b', "a\\b", "é", '","properties":{},"x":"', "a/b"])
def test_an_id_that_json_quotes_is_one(idle_app: PostHogJobs, task_id: str) -> None:
    """What waits under any id is, once it is due, the message that was sent."""
    with idle_app.connection_for_write() as connection:
        idle_app.send_task("any", args=[1], task_id=task_id, eta=SOON)
        assert idle_app.schedule.run_now(task_id).waited
        raw = connection.default_channel.client.rpop("celery")
    assert json.loads(raw)["headers"]["id"] == task_id
    assert json.loads(raw)["properties"]["delivery_tag"].startswith(f"{task_id}.")


def test_what_waits_can_be_listed(idle_app: PostHogJobs) -> None:
    """One that waits with headers of the wrong types does not spoil the list."""
    idle_app.send_task("any", eta=SOON, retries="x", headers={"posthog_jobs_error": [1]})
    (waiting,) = idle_app.schedule.list().jobs
    assert (waiting.attempt, waiting.last_error) == (1, None)


@pytest.mark.parametrize(("name", "module"), [("gzip", zlib), ("bzip2", bz2), ("lzma", lzma)])
def test_bodies_are_unpacked_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, name: str, module: Any
) -> None:
    """What is compressed comes back; what is too large, cut off or something else is refused."""
    monkeypatch.setattr(envelope, "MAX_INFLATED", 2**20)
    assert inflate(module.compress(b"x" * 1000), name) == b"x" * 1000
    largest = b"x" * 2**20
    assert inflate(module.compress(largest), name) == largest
    for bad in (module.compress(largest + b"x"), module.compress(b"abc")[:-3], b"", b"junk"):
        with pytest.raises(ValueError, match="compressed"):
            inflate(bad, name)


@pytest.mark.parametrize("name", ["zstd", "rot13", "", ["gzip"], None])
def test_other_compressions_are_refused(name: object) -> None:
    """What has no limit is not used at all."""
    with pytest.raises(ValueError, match="task_compression"):
        inflate(b"", name)


def test_words_of_a_failure_are_one_line() -> None:
    """App, job and id of a kept message cannot steer a terminal, or begin a line of their own."""
    headers = {"id": "a\nb", "task": "\x1b[2J", "posthog_jobs_app": "a\u202eb"}
    kept = FailedJob.of(headers, fallback_id="new", reason=Reason.EXCEPTION, error=ValueError("x"))
    assert (kept.id, kept.job, kept.app_id) == ("new", "\\x1b[2J", "a\\u202eb")
    assert printable("a\tb\n\x1b[2J\x9b") == "a\tb\n\\x1b[2J\\x9b"


def test_remote_control_takes_no_nonsense(
    jobs_app: PostHogJobs, celery_setup: CeleryTestSetup
) -> None:
    """What is no command, published where workers listen for commands, changes nothing."""
    nonsense: list[Any] = [
        b"\xff", "{", "[]", "1", "null", "[" * 100_000, "{}", '{"properties": {}}',
        '{"properties": {"delivery_tag": "x"}, "headers": [], "body": 5}',
        '{"properties": {"delivery_tag": "x"}, "body": "e30=", "content-type": "application/json"}',
        encoded(job()), encoded({**job(), "body": {"method": "nothing", "arguments": [1]}}),
        encoded({**job(), "body": {"method": ["x"]}}), encoded({**job(), "body": [[[]]]}),
    ]  # fmt: skip
    with jobs_app.connection_for_write() as connection:
        publish = partial(connection.default_channel.client.publish, "/0.celery.pidbox")
        poll("a listener", lambda: publish(nonsense[0]) == 1)
        for words in nonsense:
            assert publish(words) == 1
    assert poll("an answer", jobs_app.control.inspect(timeout=2).ping)
    log = celery_setup.worker.logs()
    assert log.count(" ready.") == 1
    assert "broker lost" not in log
    assert "kept as failed" not in log
