"""The worker's log of jobs: one line per end of a job, in place of Celery's own two."""

from __future__ import annotations

import json
import logging
import re
import warnings
from typing import TYPE_CHECKING, Final

from celery.exceptions import CPendingDeprecationWarning

from posthog_jobs.jobs.running import extra, logger_with_fields
from posthog_jobs.worker.job_ends import Result

if TYPE_CHECKING:
    from posthog_jobs.worker.job_ends import JobEnd

logger: Final = logger_with_fields("posthog_jobs.jobs")

#: A failure is Celery's own ERROR already, with its traceback.
_LEVELS: Final = {
    Result.SUCCEEDED: logging.INFO,
    Result.RETRIED: logging.INFO,
    Result.REVOKED: logging.INFO,
    Result.FAILED: logging.WARNING,
    Result.LOST: logging.WARNING,
}

_LINE: Final = "job=%s app=%s app_id=%s id=%s attempt=%d lateness=%s duration=%s result=%s"

_PLAIN_WORD: Final = re.compile(r"[\w.:@/+-]+")
_LONGEST_WORD: Final = 300


def wants(result: Result) -> bool:
    """Tell whether the log has a line for a job that ended so, by the worker's log level."""
    return logger.isEnabledFor(_LEVELS[result])


def write(end: JobEnd) -> None:
    """Log the end of a job.

    What the line says is also in the record, for formatters that write JSON: as attributes, named
    as in the line but for `task_id`.
    """
    level = _LEVELS[end.result]
    if not logger.isEnabledFor(level):
        return
    result = end.result.value
    fields = {
        "job": end.job,
        "app": end.app,
        "app_id": end.app_id,
        "task_id": end.id,
        "attempt": end.attempt,
        "lateness": end.lateness,
        "duration": end.duration,
        "result": result,
    }
    more = ""
    if end.reason is not None:
        fields["reason"] = reason = end.reason.value
        more = f" reason={_word(reason)}"
    elif end.delay is not None:
        fields["delay"] = end.delay
        more = f" delay={end.delay:g}"
    logger.log(
        level,
        _LINE,
        end.job,
        end.app or "-",
        _word(end.app_id),
        _word(end.id),
        end.attempt,
        _seconds(end.lateness),
        _seconds(end.duration),
        result + more,
        extra=extra(fields),
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _word(text: str) -> str:
    """Return a text as one word, which no message of a stranger can make two lines of."""
    if _PLAIN_WORD.fullmatch(text):
        return text
    return json.dumps(text[:_LONGEST_WORD]) if text else "-"


class _CelerysLines(logging.Filter):
    """Drops what Celery says of our tasks when they are received, and when they end well."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record pass, unless our own line says the same; a result stays in its line."""
        data = getattr(record, "data", None)
        if record.levelno > logging.INFO or not isinstance(data, dict):
            return True
        result = data.get("return_value")
        if isinstance(result, str) and not result.isprintable():
            # what a stranger had one of Celery's own tasks return; these are the line's arguments
            data["return_value"] = ascii(result)[1:-1]
        return not str(data.get("name")).startswith("posthog_jobs.")


_celerys_lines: Final = _CelerysLines()


def replace_celerys() -> None:
    """Leave out Celery's INFO lines about our tasks, and a warning; any number of times."""
    # of what Celery may do with running jobs once the connection is lost; ours stay on their lease
    warnings.filterwarnings("ignore", r"\s*In Celery 5\.1", CPendingDeprecationWarning)
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).addFilter(_celerys_lines)
