"""Imported by a worker: its log records have fields of their own, as with tracing libraries."""

from __future__ import annotations

import logging
from typing import Any

_make = logging.getLogRecordFactory()


def _marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _make(*args, **kwargs)
    for name in ("task_id", "job", "app", "app_id", "team_id", "attempt", "result", "duration"):
        setattr(record, name, "the factory's")
    return record


logging.setLogRecordFactory(_marked)
