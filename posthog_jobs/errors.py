"""Every error of this package, one tree; each message names the culprit and the fix.

And what most messages need: what was meant, and whether something is a number.
"""

from __future__ import annotations

import difflib
import math
import operator
import sys
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final, SupportsIndex, TypeAlias, TypeGuard

from click import ClickException

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What durations are counted in; never a bool. An index is a whole number, as numpy's are.
Number: TypeAlias = int | float | Decimal | Fraction | SupportsIndex

#: The longest delay that a `RetryError` can ask for, in seconds: a day.
_LONGEST_RETRY: Final = 86_400.0


def did_you_mean(written: object, known: Iterable[str]) -> str:
    """Return `did you mean …? ` if something known is close, else nothing."""
    close = difflib.get_close_matches(str(written)[:80], list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def is_number(
    value: object, least: float = -sys.float_info.max, most: float = sys.float_info.max
) -> TypeGuard[float]:
    """Tell whether a value is a number in a range; a bool is not, nor is NaN."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    )


def is_whole(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Tell whether a value is an integer in a range; a bool is not."""
    return isinstance(value, int) and is_number(value, least, most)


def plain_number(value: object) -> int | float | None:
    """Return a number of any kind as an int or a float; None if it is not one, as a bool is not."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    try:
        # not int(…): it makes 5 of numpy's five minutes, too
        return float(value) if isinstance(value, (Decimal, Fraction)) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


class PostHogJobsError(Exception):
    """Base of everything that this package raises on purpose."""


class OperatorError(PostHogJobsError, ClickException):
    """An operator can mend this; Celery's command line prints the message alone."""


class ConfigurationError(OperatorError):
    """A setting is missing, unknown, or has a value that cannot work."""


class EmbeddedServerError(OperatorError):
    """The private server of a laptop cannot be started, reached or stopped."""


class BrokerUnavailableError(PostHogJobsError):
    """The broker did not take a message, or does not answer.

    Attributes:
        uncertain: whether it may have taken the message, since its answer was lost. Otherwise
            nothing was enqueued.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class UnsupportedByBrokerError(PostHogJobsError):
    """The broker cannot do this; Redis can."""


class AppError(PostHogJobsError):
    """Something about an app or its installation is wrong."""


class AppLoadError(AppError):
    """An app's code cannot be loaded, or exports what no app may export."""


class AppConfigError(AppError, OperatorError):
    """An installation's config is not what the app's `plugin.json` asks for."""


class InstallError(AppError, OperatorError):
    """An app cannot be installed, changed or removed so; nothing was changed."""


class AppSetupError(AppError):
    """An app's `setup_plugin` failed, so nothing else of it runs in this process.

    Attributes:
        final: whether it failed for good, so that there is nothing to wait for.
    """

    final = False


class AppRaisedError(AppError):
    """An app's code called `sys.exit`, ran out of memory, or raised what must not leave it.

    That is what is not an Exception, as KeyboardInterrupt; what only Celery, or a task of ours, may
    say of a message, as `Ignore`; and an exception whose own text cannot be read.
    """


class LoopUnavailableError(PostHogJobsError):
    """This process has no thread left for the event loop of its async jobs."""


class AppBusyError(AppError):
    """A hook of the app that runs once at a time is running."""


class UnknownAppError(AppError):
    """No installation has this app id, or it is of another app than the job's."""


class AppDisabledError(AppError):
    """The installation is disabled; it runs neither hooks nor jobs."""


class AppRemovedError(UnknownAppError):
    """The installation that a job is of was uninstalled."""


class UnknownJobError(PostHogJobsError, AttributeError):
    """The app exports no job of this name."""


class JobCallError(OperatorError, TypeError):
    """A job was called with arguments that its function cannot take."""


class PayloadRefusedError(PostHogJobsError):
    """A job's function does not take, any more, the payload that its message carries."""


class RetriesExhaustedError(PostHogJobsError):
    """An app raised `RetryError` at every attempt that its retry policy allows."""


class WorkerLostTooOftenError(PostHogJobsError):
    """The process that ran a job died, as often as `posthog_jobs_max_deliveries` allows."""


class JobTimeLimitError(PostHogJobsError):
    """An async job ran longer than its time limit and was cancelled."""


class DueError(PostHogJobsError, ValueError):
    """The time that a job shall run at is not a time, or is out of range."""


class NaiveDatetimeError(DueError):
    """`run_at` was given a datetime without a time zone."""


class DurationError(DueError):
    """`run_in` was given a number or a unit that does not make a duration."""


class DelayTooLongError(DueError):
    """A job is due later than the broker can hold it, which RabbitMQ can for 8.5 years."""


class PayloadError(PostHogJobsError, TypeError):
    """A payload holds a value that cannot travel as JSON and arrive equal."""


class PayloadTooLargeError(PayloadError):
    """A payload is larger than `posthog_jobs_max_payload_bytes`."""


class UnknownFailureError(PostHogJobsError, LookupError):
    """No failed job is kept under this id."""


class ReplayError(PostHogJobsError):
    """A failed job cannot be replayed: it was replayed before, or its message cannot be read."""


class PageError(PostHogJobsError, ValueError):
    """The schedule or the failures were asked for less than one job, or with a foreign cursor."""


class EventError(PostHogJobsError, ValueError):
    """An event is not a mapping with a name, or belongs to no team."""


class UnknownMetricError(PostHogJobsError, AttributeError):
    """The app declares no metric of this name."""


class StoreValueError(PostHogJobsError, ValueError):
    """A key or a value given to cache, storage, cursor or metrics cannot be used, or its kind."""


class AddressError(PostHogJobsError, ValueError):
    """What `meta.geoip` shall locate is not an IP address."""


class CaptureError(PostHogJobsError):
    """PostHog did not take an event of `meta.posthog`."""


class StoreUnavailableError(PostHogJobsError):
    """Redis, or the database of `meta.storage`, did not answer an extension or `app.apps`."""


class RetryPolicyError(PostHogJobsError, ValueError):
    """What shall say how often, or after how long, to retry cannot be a retry policy."""


class RetryError(PostHogJobsError):
    """Raised by an app: this did not work now, run it again later.

    Attributes:
        delay: seconds until then; None: what the retry policy says.
    """

    delay: float | None = None

    def __init__(self, *args: object, delay: Number | timedelta | None = None) -> None:
        """Say why, and if it matters, how long to wait.

        Args:
            args: the message.
            delay: seconds, or a timedelta, until the next attempt, in place of what the policy
                says; a day at most, and more counts as a day. How often there is one is still up
                to the policy.

        Raises:
            RetryPolicyError: the delay is not a time span, or negative.
        """
        super().__init__(*args)
        if delay is not None:
            self.delay = checked_delay(delay)


def checked_delay(delay: object) -> float:
    """Return what a `RetryError` asks for, in seconds.

    Raises:
        RetryPolicyError: it is not a time span, or it is negative.
    """
    seconds = plain_number(delay.total_seconds() if isinstance(delay, timedelta) else delay)
    if seconds is None or not seconds >= 0:  # NaN is not
        raise RetryPolicyError(
            f"RetryError(delay={delay!r:.60}) cannot be; use seconds, 0 or more, or a timedelta"
        )
    return float(min(seconds, _LONGEST_RETRY))
