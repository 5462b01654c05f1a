from __future__ import annotations

import pytest

from posthog_jobs.retries import ON_RETRY_ERROR, UNTIL_THERE, RetryPolicy


def test_a_job_that_raised_retry_error() -> None:
    """Failure: RetryError means again after 5, 10, 20, 40, 80 s, then no more."""
    delays = [ON_RETRY_ERROR.delay(attempt) for attempt in range(7)]

    assert delays == [5, 10, 20, 40, 80, None, None]


def test_a_job_whose_app_is_gone() -> None:
    """App gone: its job waits longer and longer up to a minute, and without end."""
    delays = [UNTIL_THERE.delay(attempt) for attempt in range(6)]

    assert delays == [5, 10, 20, 40, 60, 60]
    assert UNTIL_THERE.delay(10**9) == 60


@pytest.mark.parametrize(("retries", "expected"), [(0, None), (1, 3.0)])
def test_the_number_of_retries(retries: int, expected: float | None) -> None:
    """A policy without retries has no delay, not even the first."""
    assert RetryPolicy(first=3, retries=retries).delay(0) == expected


def test_no_delay_is_longer_than_the_longest() -> None:
    """Delays double until the longest, also when the first exceeds it."""
    policy = RetryPolicy(first=1000, retries=None, longest=3000)

    assert [policy.delay(attempt) for attempt in range(4)] == [1000, 2000, 3000, 3000]
    assert RetryPolicy(first=9, retries=1, longest=4).delay(0) == 4
