"""What runs just now: for `meta.job`, and for logs."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
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


#: A job that is called without a message.
BY_HAND: Final = Delivery(id="")


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

#: What the fields of a log record travel as until it is made: logging refuses one that is there.
_CARRIER: Final = "posthog_jobs_fields"


class _Unpacking(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        vars(record).update(vars(record).pop(_CARRIER, {}))
        return True


_unpacking: Final = _Unpacking()


def logger_with_fields(name: str) -> logging.Logger:
    """Return the logger of a name, which takes what `extra` returns."""
    logger = logging.getLogger(name)
    logger.addFilter(_unpacking)
    return logger


def extra(fields: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what to log with as `extra`.

    Args:
        fields: what the record shall have, whatever others set.
        more: what logging's own rules are for.
    """
    others = {name: value for name, value in (more or {}).items() if name not in fields}
    return {**others, _CARRIER: fields}
