"""What `@job(…)` says of a job beside its name, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import AppLoadError, RetryPolicyError, is_number
from posthog_jobs.jobs.retry import policy_of

if TYPE_CHECKING:
    from posthog_jobs.jobs.retry import Policy

#: The longest time limit, in seconds: 366 days.
_LONGEST_LIMIT: Final = 366 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a job is run.

    Attributes:
        retry: how often it is run again when it raises `RetryError`.
        time_limit: seconds that a run may take; None: any.
    """

    retry: Policy
    time_limit: float | None


def checked_options(job: str, *, retry: object = None, time_limit: object = None) -> JobOptions:
    """Return a job's options.

    Args:
        job: the app and the job, for messages.
        retry: as `@job` has it.
        time_limit: as `@job` has it.

    Raises:
        AppLoadError: one of them cannot be; the message names the job and the fix.
    """
    if time_limit is not None and not (is_number(time_limit, 0, _LONGEST_LIMIT) and time_limit):
        raise AppLoadError(
            f"{job} has time_limit={time_limit!r:.60}; use seconds above 0, up to "
            f"{_LONGEST_LIMIT:,} (366 days), or leave it out"
        )
    try:
        return JobOptions(retry=policy_of(retry), time_limit=time_limit)
    except RetryPolicyError as error:
        raise AppLoadError(f"{job}: its retry {error}") from None
