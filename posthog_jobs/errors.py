"""Every error of this package, one tree; each message names the culprit and the fix."""

from __future__ import annotations

from click import ClickException


class PostHogJobsError(Exception):
    """Base of everything that this package raises on purpose."""


class OperatorError(PostHogJobsError, ClickException):
    """An operator can mend this; Celery's command line prints the message alone."""


class ConfigurationError(OperatorError):
    """A setting is missing, unknown, or has a value that cannot work."""


class EmbeddedServerError(OperatorError):
    """The private server of a laptop cannot be started, reached or stopped."""


class BrokerUnavailableError(PostHogJobsError):
    """The broker did not take a message; nothing was enqueued."""


class UnsupportedByBrokerError(PostHogJobsError):
    """The broker cannot do this; Redis can."""


class AppError(PostHogJobsError):
    """Something about an app or its installation is wrong."""


class AppLoadError(AppError):
    """An app's code cannot be loaded, or exports what no app may export."""


class AppSetupError(AppError):
    """An app's `setup_plugin` failed, so nothing else of it runs in this process."""


class AppExitError(AppError):
    """An app's code called `sys.exit`, which is not its to decide."""


class UnknownAppError(AppError):
    """No installation has this app id, or it is of another app than the job's."""


class AppDisabledError(AppError):
    """The installation is disabled; it runs neither hooks nor jobs."""


class UnknownJobError(PostHogJobsError, AttributeError):
    """The app exports no job of this name."""


class JobCallError(PostHogJobsError, TypeError):
    """A job was called with arguments that its function cannot take."""


class DueError(PostHogJobsError, ValueError):
    """A time that a job shall run at is no time, or is out of range."""


class NaiveDatetimeError(DueError):
    """`run_at` was given a datetime without a time zone."""


class DurationError(DueError):
    """`run_in` was given a number or a unit that is no duration."""


class DelayTooLongError(DueError):
    """A job is due later than the broker can hold it, which RabbitMQ can for 8.5 years."""


class PayloadError(PostHogJobsError, TypeError):
    """A payload holds a value that cannot travel as JSON and arrive equal."""


class PayloadTooLargeError(PayloadError):
    """A payload is larger than `posthog_jobs_max_payload_bytes`."""


class CursorError(PostHogJobsError, ValueError):
    """A cursor given to `Schedule.list` does not come from a page of it."""


class LimitError(PostHogJobsError, ValueError):
    """`Schedule.list` was asked for a number of jobs that is none."""


class EventError(PostHogJobsError, ValueError):
    """An event is not a mapping with a name, or belongs to no team."""


class StoreKeyError(PostHogJobsError, ValueError):
    """A key given to `meta.cache` or `meta.storage` is no usable key."""


class StoreValueError(PostHogJobsError, ValueError):
    """A value given to `meta.cache` or `meta.storage` cannot be kept or is of the wrong kind."""


class StoreUnavailableError(PostHogJobsError):
    """Redis did not answer a call of `meta.cache` or `meta.storage`."""


class RetryError(PostHogJobsError):
    """Raised by an app: this did not work now, run it again later."""
