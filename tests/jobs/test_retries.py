from __future__ import annotations

import pickle
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from posthog_jobs.errors import RetryError, RetryPolicyError
from posthog_jobs.jobs.execution import call
from posthog_jobs.jobs.retry import (
    NEVER,
    ON_RETRY_ERROR,
    UNTIL_THERE,
    RetryDelays,
    RetryPolicy,
    delay_after,
)
from tests.odd_times import NOT_A_TIME, Index


def test_a_job_that_raised_retry_error() -> None:
    """Failure: RetryError means again after 5, 10, 20, 40, 80 s, then no more."""
    delays = [ON_RETRY_ERROR.delay(attempt) for attempt in range(7)]

    assert delays == [5, 10, 20, 40, 80, None, None]


def test_a_job_whose_app_is_gone() -> None:
    """App gone: its job waits longer and longer up to a minute, for 10 minutes in all."""
    delays = [UNTIL_THERE.delay(attempt) for attempt in range(14)]

    assert delays == [5, 10, 20, 40, *[60] * 9, None]
    assert 600 <= sum(delay or 0 for delay in delays) < 660


@pytest.mark.parametrize(("retries", "expected"), [(0, None), (1, 3.0)])
def test_the_number_of_retries(retries: int, expected: float | None) -> None:
    """A policy without retries has no delay, not even the first."""
    assert RetryPolicy(first=3, retries=retries).delay(0) == expected


def test_no_delay_is_longer_than_the_longest() -> None:
    """Delays double until the longest, also when the first exceeds it."""
    policy = RetryPolicy(first=1000, retries=None, longest=3000)

    assert [policy.delay(attempt) for attempt in range(4)] == [1000, 2000, 3000, 3000]
    assert RetryPolicy(first=9, retries=1, longest=4).delay(0) == 4


def test_delays_one_by_one() -> None:
    """A list of delays is followed to its end."""
    policy = RetryDelays((1, 60.5, 0))

    assert [policy.delay(attempt) for attempt in range(4)] == [1, 60.5, 0, None]
    assert policy.retries == 3
    assert RetryDelays(()).delay(0) is None


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (None, 10),
        (0, 0),
        (30, 30),
        (0.5, 0.5),
        (timedelta(minutes=2), 120),
        (10**9, 86_400),
        (10**400, 86_400),
        (Decimal(5), 5),
        (Decimal("1e999"), 86_400),
        (Fraction(1, 2), 0.5),
        (Index(7), 7),
    ],
)
def test_an_error_that_says_how_long_to_wait(delay: Any, expected: float) -> None:
    """RetryError(delay=…) takes the place of the next delay; the attempt counts all the same."""
    error = RetryError("not now", delay=delay)

    assert str(error) == "not now"
    assert delay_after(error, ON_RETRY_ERROR, 1) == expected
    assert delay_after(error, ON_RETRY_ERROR, 5) is None
    assert delay_after(error, NEVER, 0) is None
    assert type(error.delay) in (float, type(None))
    assert pickle.loads(pickle.dumps(error)).delay == error.delay


@pytest.mark.parametrize(
    "delay",
    [
        -1,
        float("nan"),
        True,
        "30",
        timedelta(seconds=-1),
        [5],
        1j,
        float("-inf"),
        Decimal("sNaN"),
        NOT_A_TIME,
    ],
)
def test_a_delay_that_is_none(delay: Any) -> None:
    """Bad input: a delay that is no time span is refused where it is given, with the fix."""
    with pytest.raises(RetryPolicyError, match=r"RetryError\(delay=.*use seconds, 0 or more"):
        RetryError("not now", delay=delay)


def test_an_apps_own_retry_error() -> None:
    """A subclass need not call RetryError's constructor to be one."""

    class BusyError(RetryError):
        def __init__(self) -> None: ...

    assert delay_after(BusyError(), ON_RETRY_ERROR, 0) == 5
    assert delay_after(ValueError(), ON_RETRY_ERROR, 0) == 5


def test_a_delay_that_an_apps_own_class_has() -> None:
    """A subclass may have its delay as an attribute, which counts as if it had been given."""

    class BusyError(RetryError):
        delay: Any = timedelta(minutes=1)

    class VagueError(RetryError):
        delay: Any = "soon"

    def fail(kind: type[RetryError]) -> None:
        raise kind

    with pytest.raises(BusyError) as caught:
        call(fail, BusyError)
    assert delay_after(caught.value, ON_RETRY_ERROR, 0) == 60
    with pytest.raises(RetryPolicyError, match=r"RetryError\(delay='soon'\)"):
        call(fail, VagueError)
