from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.errors import (
    BrokerUnavailableError,
    DurationError,
    JobCallError,
    NaiveDatetimeError,
    PayloadError,
    PayloadTooLargeError,
)
from posthog_jobs.jobs.message import ABSENT
from tests.recorder import Recorder, make_jobs

if TYPE_CHECKING:
    from posthog_jobs.jobs.trigger import Jobs

HOUR = timedelta(hours=1)


@pytest.fixture
def sender() -> Recorder:
    return Recorder()


@pytest.fixture
def jobs(sender: Recorder) -> Jobs:
    return make_jobs(sender)


@pytest.mark.parametrize("payload", [None, 0, "", [], {}, False, 0.0, b"", {"a": [1]}, "x"])
@pytest.mark.parametrize("name", ["retryRequest", "either"])
def test_a_payload_is_a_payload(jobs: Jobs, sender: Recorder, name: str, payload: Any) -> None:
    """Arguments: x(None), x(0), x(""), x([]) and the like carry that payload, as it is."""
    jobs[name](payload).run_now()

    assert sender.sent[0].payload == payload
    assert type(sender.sent[0].payload) is type(payload)
    assert sender.sent[0].payload_bytes == len(repr(payload))


@pytest.mark.parametrize("name", ["clean_up", "either"])
def test_no_payload_is_none_of_them(jobs: Jobs, sender: Recorder, name: str) -> None:
    """Arguments: jobs.x() carries no payload, which no payload can be mistaken for."""
    jobs[name]().run_now()

    assert sender.sent[0].payload is ABSENT
    assert sender.sent[0].payload_bytes == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda jobs: jobs.retryRequest(), r"needs a payload; pass one, which may be None, or wri"),
        (lambda jobs: jobs.clean_up(None), r"takes no payload; .* as clean_up\(payload, meta\)"),
        (lambda jobs: jobs.clean_up({}), r"takes no payload"),
        (lambda jobs: jobs.retryRequest(1, 2), r"takes one payload; put all its values into one"),
        (lambda jobs: jobs.either(1, 2), r"takes one payload"),
        (lambda jobs: jobs.retryRequest(request=1), r"takes one payload"),
        (lambda jobs: jobs.either(meta=1), r"takes one payload"),
    ],
)
def test_calls_that_no_signature_fits(
    jobs: Jobs, sender: Recorder, call: Any, message: str
) -> None:
    """Arguments: a call that cannot match raises where it is made, naming app, job and fix."""
    with pytest.raises(
        JobCallError, match=rf"^job '\w+' of app 'teapot' \(app id 'one'\) {message}"
    ):
        call(jobs)
    assert sender.sent == []


def test_run_now(jobs: Jobs, sender: Recorder) -> None:
    """run_now: the job is due now, and does not wait in the schedule."""
    before = datetime.now(UTC)
    handle = jobs.clean_up().run_now()

    [message] = sender.sent
    assert before <= message.due <= datetime.now(UTC)
    assert not message.waits
    assert (handle.id, handle.due) == (message.id, message.due)


@pytest.mark.parametrize(
    "zone", [UTC, timezone(timedelta(hours=-8)), timezone(timedelta(hours=13))]
)
def test_run_at(jobs: Jobs, sender: Recorder, zone: timezone) -> None:
    """run_at: an aware datetime of any zone counts, in UTC, to the millisecond."""
    moment = (datetime.now(zone) + HOUR).replace(microsecond=1000)
    handle = jobs.clean_up().run_at(moment)

    [message] = sender.sent
    assert message.due == handle.due == moment
    assert message.due.tzinfo is UTC
    assert message.waits


def test_run_at_in_the_past(jobs: Jobs, sender: Recorder) -> None:
    """run_at: a moment that has passed means now."""
    before = datetime.now(UTC)
    jobs.clean_up().run_at(before - HOUR)

    [message] = sender.sent
    assert before <= message.due <= datetime.now(UTC)
    assert not message.waits


def test_run_in(jobs: Jobs, sender: Recorder) -> None:
    """run_in: a duration counts from now, to the millisecond, rounded up; none at all means now."""
    before = datetime.now(UTC)
    handle = jobs.clean_up().run_in(1.5, "minutes")
    jobs.clean_up().run_in(0, "years")

    later, now = sender.sent
    rounded = timedelta(milliseconds=1)
    assert before <= later.due - timedelta(seconds=90) <= datetime.now(UTC) + rounded
    assert (handle.due, later.waits, later.due.microsecond % 1000) == (later.due, True, 0)
    assert not now.waits


@pytest.mark.parametrize(
    ("trigger", "error"),
    [
        (lambda jobs: jobs.clean_up().run_at(datetime(2030, 1, 1)), NaiveDatetimeError),  # noqa: DTZ001
        (lambda jobs: jobs.clean_up().run_at(date(2030, 1, 1)), ValueError),
        (lambda jobs: jobs.clean_up().run_in(-1, "seconds"), DurationError),
        (lambda jobs: jobs.clean_up().run_in(1, "fortnights"), DurationError),
        (lambda jobs: jobs.clean_up().run_in(8000, "years"), DurationError),
        (lambda jobs: jobs.retryRequest({1, 2}), PayloadError),
        (lambda jobs: jobs.retryRequest("x" * 1001), PayloadTooLargeError),
    ],
)
def test_bad_input_enqueues_nothing(
    jobs: Jobs, sender: Recorder, trigger: Any, error: type[Exception]
) -> None:
    """Payload, run_at, run_in: bad input is refused where it enters, and nothing is enqueued."""
    with pytest.raises(error):
        trigger(jobs)
    assert sender.sent == []


def test_a_broker_that_is_gone(jobs: Jobs, sender: Recorder) -> None:
    """Return: from sync code, a job that cannot be sent raises where it is triggered."""
    sender.error = BrokerUnavailableError("gone")

    with pytest.raises(BrokerUnavailableError):
        jobs.clean_up().run_now()


def test_each_trigger_is_a_job_of_its_own(jobs: Jobs, sender: Recorder) -> None:
    """Return: a call can be triggered several times; each has an id of its own."""
    call = jobs.retryRequest("x")

    handles = [call.run_now(), call.run_in(1, "hour"), call.run_now()]

    assert len({handle.id for handle in handles}) == 3
    assert [handle.id for handle in handles] == [message.id for message in sender.sent]
    assert repr(handles[0]) == f"<JobHandle {handles[0].id} due {handles[0].due.isoformat()}>"
