"""How often, and after how long, what raised `RetryError` is run again; PostHog's figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Delays that double.

    Attributes:
        first: seconds before the first retry.
        retries: how often it is run again before it counts as failed; None: without end.
        longest: what no delay exceeds, in seconds.
    """

    first: float
    retries: int | None
    longest: float = 3600.0

    def delay(self, attempt: int) -> float | None:
        """Return the seconds to wait after the attempt of this number failed, from 0 on.

        Returns:
            None when there is no retry left.
        """
        if self.retries is not None and attempt >= self.retries:
            return None
        return min(self.first * 2.0 ** min(attempt, 64), self.longest)


#: A job, `on_event` or `setup_plugin` that raised `RetryError`: after 5, 10, 20, 40 and 80 s.
ON_RETRY_ERROR: Final = RetryPolicy(first=5, retries=5)

#: A job whose app or function is not there now: after 5, 10, 20, 40, then every 60 s, until it is.
UNTIL_THERE: Final = RetryPolicy(first=5, retries=None, longest=60)
