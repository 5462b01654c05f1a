"""What failed can be listed, counted, replayed and discarded."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from posthog_jobs.broker.failure import FailedCount, Reason
from posthog_jobs.broker.failures import FailureKeeper
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    AppDisabledError,
    BrokerUnavailableError,
    ConfigurationError,
    NaiveDatetimeError,
    PageError,
    ReplayError,
    UnknownFailureError,
)
from tests.broken import Broken
from tests.conftest import APPS
from tests.servers.nodes import closed_port

if TYPE_CHECKING:
    from posthog_jobs.broker.failures import Failures
    from tests.servers.nodes import RedisProcess


@pytest.fixture
def broken(idle_app: PostHogJobs, idle_server: RedisProcess) -> Broken:
    return Broken(idle_app, idle_server)


@pytest.fixture
def failures(idle_app: PostHogJobs) -> Failures:
    return idle_app.failures


# -- kept -------------------------------------------------------------------------------------


def test_get(broken: Broken, failures: Failures) -> None:
    """get: all that is known of a failed job, and its message as it was."""
    before = datetime.now(UTC)
    broken.app.meta_for("recorder").jobs.record({"url": "http://x"}).run_now()
    tag, raw = broken.fetch()
    task_id = broken.settle(tag, raw, ValueError("no good"))

    job = failures.get(task_id)

    assert job is not None
    assert (job.id, job.app_id, job.job) == (task_id, "recorder", "posthog_jobs.recorder.record")
    assert (job.reason, job.exception, job.message) == (Reason.EXCEPTION, "ValueError", "no good")
    assert (job.traceback, job.worker, job.attempts) == ("Traceback …", "w@test", 1)
    assert (job.key, job.due, job.started, job.replay_of, job.replayed_as) == (None,) * 5
    assert before - timedelta(seconds=1) < job.failed < datetime.now(UTC) + timedelta(seconds=1)
    assert (job.queue, job.raw) == ("celery", raw)
    assert job.body is not None
    assert json.loads(job.body)[0] == ["recorder", {"url": "http://x"}]
    assert failures.get("no such id") is None


def test_keeping_acknowledges(broken: Broken) -> None:
    """Atomic: what is kept is in flight no more; what is not in flight any more is not kept."""
    broken.app.meta_for("recorder").jobs.record(1).run_now()
    tag, raw = broken.fetch()
    assert broken.client.hlen("posthog_jobs:inflight:worker") == 1

    broken.settle(tag, raw, ValueError())
    assert broken.client.hlen("posthog_jobs:inflight:worker") == 0
    assert broken.app.failures.count() == 1

    failed = broken.app.failures.list().jobs[0]
    broken.app.failures.discard(failed.id)
    broken.settle(tag, raw, ValueError())
    assert broken.app.failures.count() == 0, "the lease was lost: it runs elsewhere"


def test_the_same_id_is_kept_once(broken: Broken, failures: Failures) -> None:
    """Never twice: an id that fails again, delivered again, is kept as it failed last."""
    broken.app.meta_for("recorder").jobs.record(1).run_now()
    tag, raw = broken.fetch()
    task_id = broken.settle(tag, raw, ValueError("first"))
    broken.client.lpush("celery", raw)
    broken.settle(*broken.fetch(), KeyError("second"))

    (job,) = failures.list().jobs

    assert (job.id, job.exception, failures.count()) == (task_id, "KeyError", 1)


def test_what_an_exception_says_is_cut(broken: Broken, failures: Failures) -> None:
    """Kept: of a very long message the beginning; odd characters do no harm."""
    task_id = broken.fail(ValueError("\ud800" + "x" * 100_000))

    job = failures.get(task_id)

    assert job is not None
    assert len(job.message) == 4000


# -- list and count ---------------------------------------------------------------------------


def test_list_pages_newest_first(broken: Broken, failures: Failures) -> None:
    """list: the newest first, over all apps, jobs and reasons, page by page."""
    errors = [ValueError(), RecursionError(), KeyError()]
    sent = [
        broken.fail(errors[n % 3], ("recorder", "second")[n % 2], ("record", "slow")[n % 5 == 0])
        for n in range(11)
    ]
    found: list[str] = []
    cursor = None
    while True:
        page = failures.list(limit=4, cursor=cursor)
        found += [job.id for job in page.jobs]
        cursor = page.cursor
        if cursor is None:
            break

    assert found == sent[::-1]
    assert all(job.raw == b"" for job in page.jobs), "without the messages"


def test_filters(broken: Broken, failures: Failures) -> None:
    """list, count: by app id, by a job's name or its task's, by reason, and by time."""
    one = broken.fail()
    other = broken.fail(job="slow")
    elsewhere = broken.fail(AppDisabledError("off"), "second")
    job = failures.get(elsewhere)
    assert job is not None
    expected: list[tuple[dict[str, Any], list[str]]] = [
        ({}, [elsewhere, other, one]),
        ({"app_id": "recorder"}, [other, one]),
        ({"job": "record"}, [elsewhere, one]),
        ({"job": "posthog_jobs.recorder.slow"}, [other]),
        ({"reason": Reason.APP_DISABLED}, [elsewhere]),
        ({"reason": Reason.EXCEPTION, "job": "record"}, [one]),
        ({"reason": "app disabled"}, [elsewhere]),
        ({"app_id": "nobody"}, []),
        ({"before": datetime(2000, 1, 1, tzinfo=UTC)}, []),
        ({"before": datetime.now(UTC) + timedelta(hours=1)}, [elsewhere, other, one]),
    ]
    for filters, ids in expected:
        assert [job.id for job in failures.list(**filters).jobs] == ids, filters
        assert failures.count(**filters) == len(ids), filters
    assert failures.counts() == tuple(
        FailedCount(app_id=app_id, job=f"posthog_jobs.recorder.{name}", reason=reason, count=1)
        for app_id, name, reason in (
            ("recorder", "record", Reason.EXCEPTION),
            ("recorder", "slow", Reason.EXCEPTION),
            ("second", "record", Reason.APP_DISABLED),
        )
    )


def test_mistakes(failures: Failures) -> None:
    """Bad input: a limit, cursor, time, reason or id that is none is refused."""
    anything: Any = None
    with pytest.raises(TypeError, match="an id is a string"):
        failures.get(anything)
    with pytest.raises(ValueError, match="'no reason' is not a valid Reason"):
        failures.list(reason=cast("Any", "no reason"))
    with pytest.raises(PageError):
        failures.list(limit=0)
    with pytest.raises(PageError):
        failures.list(cursor="x")
    with pytest.raises(NaiveDatetimeError):
        failures.count(before=datetime(2100, 1, 1))  # noqa: DTZ001
    with pytest.raises(UnknownFailureError, match="'x'"):
        failures.replay("x")
    app = PostHogJobs(config_source={"broker_url": f"redis://127.0.0.1:{closed_port()}"})
    with pytest.raises(BrokerUnavailableError):
        app.failures.count()


# -- replay -----------------------------------------------------------------------------------


def test_replay(broken: Broken, failures: Failures) -> None:
    """replay: in its queue again, under a new id, counted anew, its payload byte for byte."""
    broken.app.meta_for("recorder").jobs.record({"π": datetime.now(UTC)}).run_now()
    tag, raw = broken.fetch()
    old = json.loads(raw)
    old["headers"] |= {
        "retries": 5, "redelivered": True, "posthog_jobs_due": 7, "posthog_jobs_waited": 13,
        "custom": "stays", "posthog_jobs_key": "k",
    }  # fmt: skip
    old["properties"]["delivery_info"]["redelivered"] = True
    broken.client.hdel("posthog_jobs:inflight:worker", tag)
    broken.client.lpush("celery", json.dumps(old))
    task_id = broken.settle(*broken.fetch(), ValueError())

    new_id = failures.replay(task_id)

    tag, raw = broken.fetch()
    new = json.loads(raw)
    headers = new["headers"]
    assert new["body"] == old["body"]
    assert (headers["id"], headers["root_id"], headers["retries"]) == (new_id, new_id, 0)
    assert (headers["task"], headers["custom"]) == ("posthog_jobs.recorder.record", "stays")
    assert headers["posthog_jobs_replay_of"] == task_id
    gone = {"redelivered", "posthog_jobs_due", "posthog_jobs_waited", "posthog_jobs_key"}
    assert not gone & headers.keys()
    assert "redelivered" not in new["properties"]["delivery_info"]
    assert broken.client.exists("posthog_jobs:wake:celery"), "a sleeping worker is called"

    broken.settle(tag, raw, ValueError())
    again = failures.get(new_id)
    assert again is not None
    assert again.replay_of == task_id


def test_a_replayed_job_is_history(broken: Broken, failures: Failures) -> None:
    """replay: what was replayed is not open any more, says as what, and is not replayed twice."""
    task_id = broken.fail()
    new_id = failures.replay(task_id)

    job = failures.get(task_id)

    assert job is not None
    assert job.replayed_as == new_id
    assert (failures.count(), failures.list().jobs) == (0, ())
    assert [job.id for job in failures.list(replayed=True).jobs] == [task_id]
    with pytest.raises(ReplayError, match=f"replayed already, as {new_id}"):
        failures.replay(task_id)
    assert broken.client.llen("celery") == 1
    assert failures.discard(task_id)
    assert broken.keys_left() == []


def test_replay_all(broken: Broken, failures: Failures) -> None:
    """replay_all: all that fit, the first failed first; the others stay."""
    first, second = broken.fail(payload=1), broken.fail(payload=2)
    other = broken.fail(app_id="second")

    assert failures.replay_all(app_id="recorder") == 2

    sent = [json.loads(broken.fetch()[1])["headers"]["posthog_jobs_replay_of"] for _ in range(2)]
    assert sent == [first, second]
    assert [job.id for job in failures.list().jobs] == [other]
    assert failures.replay_all(app_id="recorder") == 0


def test_what_is_no_message_is_not_replayed(broken: Broken, failures: Failures) -> None:
    """replay: bytes that are no message are shown and discarded, but cannot be sent again."""
    for raw in (b"\xff", b"{}", b'{"headers": {}, "properties": {}, "body": ""}'):
        broken.client.lpush("celery", raw)
        tag, _ = broken.fetch()
        task_id = broken.settle(tag, b'{"headers": {"id": "odd"}}', ValueError())
        with pytest.raises(ReplayError, match="not a message of a task"):
            failures.replay(task_id)
        assert failures.replay_all() == 0
        job = failures.get("odd")
        assert job is not None
        assert job.raw == raw


# -- discard, age and number ------------------------------------------------------------------


def test_discard(broken: Broken, failures: Failures) -> None:
    """discard: gone for good, and nothing of it is left on the broker."""
    one, *_ = [broken.fail(payload=n) for n in range(3)]

    assert failures.discard(one)
    assert not failures.discard(one)
    assert failures.discard_all(app_id="second") == 0
    assert failures.discard_all() == 2
    assert broken.keys_left() == []


def test_at_most_so_many_are_kept(
    broken: Broken, failures: Failures, caplog: pytest.LogCaptureFixture
) -> None:
    """Limit: over posthog_jobs_max_failures the oldest go, with a warning and a count."""
    broken.most = 3
    sent = [broken.fail(payload=n) for n in range(5)]

    assert [job.id for job in failures.list().jobs] == sent[:1:-1]
    assert failures.dropped() == 2
    assert "posthog_jobs_max_failures=3" in caplog.text
    assert failures.get(sent[0]) is None


def test_they_are_kept_for_30_days(broken: Broken, failures: Failures) -> None:
    """Age: what failed 30 days ago is not listed, and goes with the next look."""
    old, new = broken.fail(payload=1), broken.fail(payload=2)
    long_ago = (datetime.now(UTC) - timedelta(days=30, minutes=1)).timestamp() * 1000
    for key in broken.client.keys("posthog_jobs:failed*"):
        if broken.client.type(key) == b"zset":
            broken.client.zadd(key, {old: long_ago}, xx=True)

    assert [job.id for job in failures.list().jobs] == [new]
    assert failures.count() == 1
    assert FailureKeeper(broken.keys, 100).trim(broken.connection)
    assert failures.get(old) is None
    assert failures.dropped() == 1


@pytest.mark.parametrize("name", ["max_failures", "max_deliveries"])
def test_settings(name: str) -> None:
    """Bad input: the limits are whole numbers above 0."""
    app = PostHogJobs(
        config_source={"broker_url": "redis://127.0.0.1:1", f"posthog_jobs_{name}": 0}
    )
    with pytest.raises(ConfigurationError, match=f"posthog_jobs_{name} is 0"):
        app.process_event({"event": "x"})


def test_the_setting_reaches_the_channel(idle_server: RedisProcess) -> None:
    """Limit: posthog_jobs_max_failures is what the transport keeps to."""
    app = PostHogJobs(
        config_source={
            "broker_url": idle_server.url,
            "posthog_jobs_apps": APPS,
            "posthog_jobs_max_failures": 7,
        }
    )
    with app.connection_for_read() as connection:
        assert connection.default_channel.max_failures == 7


def test_redis_is_full(broken: Broken, failures: Failures) -> None:
    """Full: when Redis refuses new jobs, failed ones are kept all the same."""
    broken.app.meta_for("recorder").jobs.record(base64.b64encode(b"x" * 9).decode()).run_now()
    tag, raw = broken.fetch()
    broken.client.config_set("maxmemory", "1mb")
    try:
        broken.settle(tag, raw, ValueError())
    finally:
        broken.client.config_set("maxmemory", "0")
    assert failures.count() == 1
