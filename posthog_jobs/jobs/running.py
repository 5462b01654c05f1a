"""What runs just now: for `meta.job`, and for logs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a job's message says of this run.

    Attributes:
        id: the task id, which stays the same when the job is retried.
        attempt: counts the runs, from 1 on; only those that `RetryError` asked for.
        due: when this attempt was due, in UTC; None for one that was due when it was sent.
        key: the key that the job was triggered with, if it was.
    """

    id: str
    attempt: int = 1
    due: datetime | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob(Delivery):
    """A job under way.

    Attributes:
        app_id: the installation that runs it.
        team_id: the installation's team.
        job_name: the name that it is exported under.
        max_attempts: how often it runs at most if each run raises `RetryError`; None: no limit.
    """

    app_id: str
    team_id: int
    job_name: str
    max_attempts: int | None


#: The job that runs here; None in hooks. A job's coroutines inherit it.
current_job: Final[ContextVar[RunningJob | None]] = ContextVar("current_job", default=None)

#: The id of the task that runs here, be it a job's or a hook's; None outside of tasks.
current_task_id: Final[ContextVar[str | None]] = ContextVar("current_task_id", default=None)
