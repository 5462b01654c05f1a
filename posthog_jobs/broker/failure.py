"""How a job failed, as it is kept beside its message."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from posthog_jobs.broker.records import APP_HEADER, DUE_HEADER, KEY_HEADER, netstrings
from posthog_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Message header: the id of the failed job that this is a replay of.
REPLAY_HEADER: Final = "posthog_jobs_replay_of"

#: The states of a failed job: nobody has dealt with it yet, or it was sent again.
OPEN: Final = "open"
REPLAYED: Final = "replayed"

#: What is kept at most of an exception's message, of its traceback (the end, which says most), and
#: of a word such as an id, in characters.
_MESSAGE: Final = 4_000
_TRACEBACK: Final = 40_000
_WORD: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why and how a job ended without success; its payload stays in its message.

    Attributes:
        id: task id.
        app_id: app id; empty for a Celery task of no app.
        job: task name; empty for a message that names none.
        reason: value of a `posthog_jobs.broker.reasons.Reason`.
        exception: class of the exception; empty if there was none.
        message: what the exception says, without secrets; it may quote the payload.
        traceback: where it was raised, without secrets; it may quote the payload.
        worker: name of the worker.
        attempts: how often the job was run, counting its retries.
        key: the key that it waited under, if it had one.
        due: when it was due, in ms since the epoch, if it was delayed.
        started: when its last attempt began, in ms since the epoch, if it did.
        ended: when its last attempt ended, in ms since the epoch, by the worker's clock.
        replay_of: the id of the failed job that this was a replay of.
        replayed_as: the id that it was sent again under.
    """

    id: str
    app_id: str
    job: str
    reason: str
    exception: str
    message: str = field(repr=False)
    traceback: str = field(repr=False)
    worker: str
    attempts: int
    key: str | None
    due: int | None
    started: int | None
    ended: int
    replay_of: str | None
    replayed_as: str | None = None

    @classmethod
    def of(  # noqa: PLR0913  # all keyword-only, and each a fact of its own
        cls,
        headers: Mapping[str, Any],
        *,
        fallback_id: str,
        reason: str,
        error: BaseException,
        traceback: str = "",
        worker: str = "",
        started: float | None = None,
    ) -> Failure:
        """Describe a failure.

        Args:
            headers: of the message; they may hold anything.
            fallback_id: the id of a message that has none, or one that cannot be printed.
            reason: value of a `Reason`.
            error: what was raised.
            traceback: where.
            worker: name of the worker.
            started: when the attempt began, in seconds since the epoch.
        """
        retries, due = headers.get("retries"), headers.get(DUE_HEADER)
        task_id = headers.get("id")
        return cls(
            id=task_id if is_word(task_id) else fallback_id,
            app_id=_word(headers.get(APP_HEADER)),
            job=_word(headers.get("task")),
            reason=reason,
            # an exception that cannot be pickled comes in a wrapper that names its class
            exception=_word(getattr(error, "exc_cls_name", type(error).__name__)),
            message=redact(str(error))[:_MESSAGE],
            traceback=redact(str(traceback))[-_TRACEBACK:],
            worker=worker,
            attempts=1 + (retries if isinstance(retries, int) else 0),
            key=_word(headers.get(KEY_HEADER)) or None,
            due=due if isinstance(due, int) else None,
            started=None if started is None else round(started * 1000),
            ended=round(time.time() * 1000),
            replay_of=_word(headers.get(REPLAY_HEADER)) or None,
        )

    def replayed(self, task_id: str) -> Failure:
        """Return the same, sent again under another id."""
        return replace(self, replayed_as=task_id)

    @property
    def partition(self) -> str:
        """What it is listed and counted by."""
        state = OPEN if self.replayed_as is None else REPLAYED
        return netstrings(self.app_id, self.job, self.reason, state)

    @property
    def details(self) -> str:
        """All of it, as JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def record(self) -> str:
        """What the hash of failed jobs has for it."""
        return netstrings(self.partition) + self.details


def is_word(value: object) -> TypeGuard[str]:
    """Tell whether a value can be written into a line of a log, and read there as what it is."""
    return isinstance(value, str) and 0 < len(value) <= _WORD and value.isprintable()


def _word(value: object) -> str:
    """Return what a message says as a word that can be stored and listed, whatever it is."""
    text = "" if value is None else str(value)[:_WORD]
    return text if text.isprintable() else ascii(text)[1:-1][:_WORD]
