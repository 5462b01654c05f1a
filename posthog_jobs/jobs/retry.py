"""How often, and after how long, what did not work is run again: one table of policies.

The figures of jobs, `on_event`, `setup_plugin` and exports are PostHog's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from posthog_jobs.errors import RetryError, RetryPolicyError, is_number, is_whole

#: The longest delay of a policy, in seconds: 366 days.
_LONGEST: Final = 366 * 86_400.0
_MOST_DELAYS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Delays that double.

    Attributes:
        first: seconds before the first retry.
        retries: how often it is run again before it counts as failed; None: without end.
        longest: what no delay exceeds, in seconds.
    """

    first: float = 5.0
    retries: int | None = 5
    longest: float = 3600.0

    def delay(self, attempt: int) -> float | None:
        """Return the seconds to wait after the attempt of this number failed, from 0 on.

        Returns:
            None when there is no retry left.
        """
        if self.retries is not None and attempt >= self.retries:
            return None
        return min(self.first * 2.0 ** min(attempt, 64), self.longest)


@dataclass(frozen=True, slots=True)
class RetryDelays:
    """Delays one by one, in seconds."""

    delays: tuple[float, ...]

    @property
    def retries(self) -> int:
        """How often it is run again before it counts as failed."""
        return len(self.delays)

    def delay(self, attempt: int) -> float | None:
        """Return the seconds to wait, as `RetryPolicy.delay`."""
        return self.delays[attempt] if attempt < len(self.delays) else None


Policy: TypeAlias = RetryPolicy | RetryDelays

#: A job or `on_event` that raised `RetryError`: after 5, 10, 20, 40 and 80 s.
ON_RETRY_ERROR: Final = RetryPolicy(first=5, retries=5)

#: `setup_plugin` that raised `RetryError`: after 5, 10, 20, 40 and 80 s.
ON_SETUP_RETRY: Final = RetryPolicy(first=5, retries=5)

#: `run_every_hour` and `run_every_day`: after 5, 10, 20, 40 and 80 s, before the next one is due.
ON_TICK_RETRY: Final = RetryPolicy(first=5, retries=5)

#: `run_every_…` while another one of the installation runs: after 1, 2, 4, 8, 16, then every 30 s,
#: before the next one is due.
UNTIL_FREE: Final = RetryPolicy(first=1, retries=None, longest=30)

#: What is not run again.
NEVER: Final = RetryPolicy(retries=0)

#: A job whose app or function is not there now, as in the middle of a deploy: after 5, 10, 20, 40,
#: then every 60 s, for 10 minutes in all.
UNTIL_THERE: Final = RetryPolicy(first=5, retries=13, longest=60)

#: An app whose code cannot be loaded, or whose `setup_plugin` found a store away: after 5, 10, 20,
#: 40, then every 60 s, without end.
LOAD_AGAIN: Final = RetryPolicy(first=5, retries=None, longest=60)

#: A batch of `export_events`: after 6, 12, 24 … s, 15 times, so for 54 hours; as PostHog's.
ON_EXPORT_RETRY: Final = RetryPolicy(first=6, retries=15, longest=6 * 2.0**14)


def delay_after(error: Exception, policy: Policy, attempt: int) -> float | None:
    """Return the seconds to wait after an attempt failed: what its `RetryError` asked for, if any.

    Args:
        error: what it raised.
        policy: decides whether it is run again, and after how long by default.
        attempt: its number, from 0 on.

    Returns:
        None when there is no retry left.
    """
    delay = policy.delay(attempt)
    if delay is None or not isinstance(error, RetryError) or error.delay is None:
        return delay
    return error.delay


def policy_of(retry: object) -> Policy:
    """Return the policy that `@job(retry=…)` asks for, checked.

    Args:
        retry: a policy; how many retries, with the usual delays; a list of delays in seconds;
            False for none; or None or True for the usual.

    Raises:
        RetryPolicyError: it is none of these.
    """
    if retry is None or retry is True:
        return ON_RETRY_ERROR
    if retry is False:
        return NEVER
    if isinstance(retry, int):
        retry = RetryPolicy(first=ON_RETRY_ERROR.first, retries=retry)
    if isinstance(retry, RetryPolicy):
        _check_count(retry.retries)
        _check_seconds("first", retry.first)
        _check_seconds("longest", retry.longest)
        return retry
    if isinstance(retry, (list, tuple)):
        if len(retry) > _MOST_DELAYS:
            raise RetryPolicyError(f"has {len(retry)} delays; use up to {_MOST_DELAYS}")
        for delay in retry:
            _check_seconds("a delay", delay)
        return RetryDelays(tuple(retry))
    raise RetryPolicyError(
        f"is {retry!r:.60}; use a number of retries, a list of delays in seconds, a RetryPolicy, "
        "or False for no retry"
    )


def _check_count(retries: object) -> None:
    if retries is not None and not is_whole(retries, 0):
        raise RetryPolicyError(
            f"has {retries!r:.60} retries; use a whole number, 0 or more, or None for no end"
        )


def _check_seconds(what: str, seconds: object) -> None:
    if not is_number(seconds, 0, _LONGEST):
        raise RetryPolicyError(
            f"has {what} of {seconds!r:.60}; use seconds, from 0 to {_LONGEST:,.0f} (366 days)"
        )
