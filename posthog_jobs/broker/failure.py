"""A failed job: a job that ended without success, as it is kept beside its message.

Redis has it as a record (`lua/failed_lib.lua`): the partition that it is listed by, and its details
as JSON, with times in milliseconds since the epoch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Self, TypeGuard

from posthog_jobs.broker.envelope import (
    APP_HEADER,
    DUE_HEADER,
    KEY_HEADER,
    REPLAY_HEADER,
    body_of,
    check_shape,
    netstrings,
    take,
)
from posthog_jobs.jobs.due import milliseconds, moment_of
from posthog_jobs.redaction import redact, showable

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The states of a failed job: nobody has dealt with it yet, or it was sent again.
OPEN: Final = "open"
REPLAYED: Final = "replayed"

#: What is kept at most of an exception's message, and of a word such as an id, in characters.
_MESSAGE: Final = 4_000
_WORD: Final = 300

_TIMES: Final = ("due", "started", "ended")
#: What Redis keeps elsewhere than in the details.
_APART: Final = ("failed", "queue", "raw")


class Reason(Enum):
    """Why a job is kept as failed."""

    #: The app's code raised something other than `RetryError`.
    EXCEPTION = "exception"
    #: It raised `RetryError` at every attempt that its policy allows.
    RETRIES_EXHAUSTED = "retries exhausted"
    #: It ran longer than its time limit.
    TIME_LIMIT = "time limit"
    #: The process that ran it died, as often as `posthog_jobs_max_deliveries` allows.
    WORKER_LOST = "worker lost too often"
    #: Its installation is disabled.
    APP_DISABLED = "app disabled"
    #: Its installation was uninstalled.
    APP_REMOVED = "app removed"
    #: Its app cannot be loaded, its config is wrong, or its `setup_plugin` failed.
    APP_BROKEN = "app broken"
    #: No installation has its app id.
    UNKNOWN_APP = "unknown app"
    #: The app exports no job of its name, or nobody knows its task.
    UNKNOWN_JOB = "unknown job"
    #: The message cannot be read as a task.
    UNDECODABLE = "undecodable message"
    #: The job's function does not take its payload any more.
    PAYLOAD_REFUSED = "payload no longer accepted"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedJob:
    """A job that ended without success, kept with its message.

    Attributes:
        id: task id; a new one for a message that has none.
        app_id: app id; empty for a Celery task of no app.
        job: task name, `posthog_jobs.<app name>.<job name>`; empty if the message names none.
        reason: why it is kept.
        exception: class of what was raised; empty if there was nothing.
        message: what the exception says, without secrets; it may quote the payload.
        traceback: where it was raised, without secrets; it may quote the payload.
        worker: name of the worker.
        attempts: how often it was run, counting its retries.
        key: the key that it waited under, if it had one.
        due: when it was due, in UTC, if it was delayed.
        started: when its last attempt began, in UTC, if it did.
        ended: when its last attempt ended, in UTC, by the worker's clock.
        replay_of: the id of the failed job that it was a replay of.
        replayed_as: the id that it was sent again under; it is history then, and not open.
        failed: when it was kept, in UTC, by Redis' clock; failed jobs are listed by it.
        queue: Redis list that it came from; empty in a list.
        raw: the message as it was on the broker; empty in a list.
    """

    id: str
    app_id: str
    job: str
    reason: Reason
    exception: str
    message: str = field(repr=False)
    traceback: str = field(repr=False)
    worker: str
    attempts: int
    key: str | None
    due: datetime | None
    started: datetime | None
    ended: datetime
    replay_of: str | None
    replayed_as: str | None = None
    failed: datetime
    queue: str = ""
    raw: bytes = field(default=b"", repr=False)

    @classmethod
    def of(  # noqa: PLR0913  # all keyword-only, and each a fact of its own
        cls,
        headers: Mapping[str, Any],
        *,
        fallback_id: str,
        reason: Reason,
        error: BaseException,
        traceback: str = "",
        worker: str = "",
        started: float | None = None,
    ) -> Self:
        """Describe a job that has failed just now.

        Args:
            headers: of the message; they may hold anything.
            fallback_id: the id of a message that has none, or one that cannot be printed.
            reason: why it is kept.
            error: what was raised.
            traceback: where.
            worker: name of the worker.
            started: when the attempt began, in seconds since the epoch.
        """
        retries, due = headers.get("retries"), headers.get(DUE_HEADER)
        task_id, now = headers.get("id"), datetime.now(UTC)
        return cls(
            id=task_id if is_word(task_id) else fallback_id,
            app_id=_word(headers.get(APP_HEADER)),
            job=_word(headers.get("task")),
            reason=reason,
            # an exception that cannot be pickled comes in a wrapper that names its class
            exception=_word(getattr(error, "exc_cls_name", type(error).__name__)),
            message=redact(_text(error))[:_MESSAGE],
            traceback=showable(str(traceback)),
            worker=worker,
            attempts=1 + (retries if isinstance(retries, int) else 0),
            key=_word(headers.get(KEY_HEADER)) or None,
            due=moment_of(due) if isinstance(due, int) else None,
            started=None if started is None else moment_of(round(started * 1000)),
            ended=now,
            replay_of=_word(headers.get(REPLAY_HEADER)) or None,
            failed=now,
        )

    @classmethod
    def parse(cls, record: bytes, at: float, *, queue: str = "", raw: bytes = b"") -> Self:
        """Read a value of the hash `failed`.

        Args:
            record: the value.
            at: when it was kept, in ms since the epoch.
            queue: Redis list that it came from.
            raw: its message.
        """
        details = json.loads(take(record)[1])
        for name in _TIMES:
            if details[name] is not None:
                details[name] = moment_of(details[name])
        details["reason"] = Reason(details["reason"])
        return cls(**details, failed=moment_of(int(at)), queue=queue, raw=raw)

    @property
    def partition(self) -> str:
        """What it is listed and counted by."""
        state = OPEN if self.replayed_as is None else REPLAYED
        return netstrings(self.app_id, self.job, self.reason.value, state)

    @property
    def details(self) -> str:
        """What Redis keeps of it beside its message, as JSON."""
        details = asdict(self)
        for name in _APART:
            del details[name]
        for name in _TIMES:
            if details[name] is not None:
                details[name] = milliseconds(details[name], name)
        return json.dumps({**details, "reason": self.reason.value}, separators=(",", ":"))

    @property
    def record(self) -> str:
        """What the hash of failed jobs has for it."""
        return netstrings(self.partition) + self.details

    @property
    def envelope(self) -> dict[str, Any] | None:
        """The message, decoded: `headers`, `properties`, and the still encoded `body`.

        None when it cannot be read as one.
        """
        try:
            decoded: dict[str, Any] = json.loads(self.raw)
            check_shape(decoded)
        except (ValueError, TypeError, RecursionError):
            return None
        return decoded

    @property
    def body(self) -> bytes | None:
        """The message's body as its serializer made it; None when it cannot be read."""
        try:
            return None if self.envelope is None else body_of(self.envelope)
        except Exception:  # noqa: BLE001  # as a compression that nobody knows
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPage:
    """Some of the failed jobs, the newest first; `cursor` leads on, None at the end."""

    jobs: tuple[FailedJob, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCount:
    """How many jobs of an app id and a name failed for a reason, and are open."""

    app_id: str
    job: str
    reason: Reason
    count: int


def is_word(value: object) -> TypeGuard[str]:
    """Tell whether a value can be written into a line of a log, and read there as what it is."""
    return isinstance(value, str) and 0 < len(value) <= _WORD and value.isprintable()


def _text(error: BaseException) -> str:
    """Return what an exception says; a project's own task may raise one that cannot say it."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # whatever its code does
        return "its text cannot be read; mend its __str__"


def _word(value: object) -> str:
    """Return what a message says as a word that can be stored and listed, whatever it is."""
    text = "" if value is None else str(value)[:_WORD]
    return text if text.isprintable() else ascii(text)[1:-1][:_WORD]
