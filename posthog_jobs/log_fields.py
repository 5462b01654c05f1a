"""Fields of log records that get there whoever else sets them, as a record factory may."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What they travel as until the record is made: logging refuses a field that is there already.
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
