"""The task that all of ours are: its message stays on the broker until it has run."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from celery import Task
from celery.app.trace import build_tracer
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry, Terminated, WorkerLostError
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from posthog_jobs.broker.envelope import (
    AWAY_HEADER,
    ERROR_HEADER,
    WAITED_HEADER,
    described,
    retry_headers,
)
from posthog_jobs.broker.transport.sending import is_away
from posthog_jobs.errors import (
    AppControlError,
    AppDisabledError,
    AppExitError,
    AppMemoryError,
    AppRemovedError,
    AppSetupError,
    BrokerUnavailableError,
    JobCallError,
    LoopUnavailableError,
    RetriesExhaustedError,
    StoreUnavailableError,
)
from posthog_jobs.jobs.execution import in_worker
from posthog_jobs.jobs.retry import LOAD_AGAIN, UNTIL_THERE, delay_after
from posthog_jobs.jobs.running import current_task_id
from posthog_jobs.worker.configuration import check_not_eager
from posthog_jobs.worker.job_ends import SentAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery
    from celery.app.task import Context

    from posthog_jobs.jobs.retry import Policy

logger = logging.getLogger(__name__)

_Exception = TypeVar("_Exception", bound=Exception)

#: By which Celery is told that a message is dealt with, or that its worker is gone.
_CONTROL: Final = (Ignore, Reject, Retry, Terminated, WorkerLostError)


class _NoBackend(DisabledBackend):
    """In the place of a result backend; the tracer looks for no result of an earlier delivery."""

    persistent = False


class _WithoutResults:
    """An app as its tasks' tracers see it, that has no result backend."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self.backend = _NoBackend(app)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class PlainTask(Task):
    """Any other Celery task of the app; it is kept as failed where it is acknowledged late."""

    Request = "posthog_jobs.worker.requests:KeepingRequest"
    abstract = True


class DurableTask(Task):
    """A task whose message stays on the broker until it has run, and shows no contents."""

    Request = "posthog_jobs.worker.requests:DiscreetRequest"
    abstract = True
    acks_late = True
    acks_on_failure = True  # which is how a failed one is kept
    acks_on_timeout = True
    reject_on_worker_lost = True
    retry_on_worker_lost = False
    ignore_result = True
    serializer = "json"
    typing = False  # meta.jobs checks calls, and says what is wrong with them
    #: The names of app and job that logs and metrics have; a hook's task is of no one app.
    app_name: str | None = None
    job_name: str | None = None
    max_retries = None  # the retry policies count
    _trace: Any = None

    #: What it takes, for who sends it by its name.
    takes = "the arguments that posthog_jobs itself sends it with"

    def apply(self, *arguments: Any, **options: Any) -> Any:
        """Run the task here, as Celery's own does, which no setting may have in place of sending.

        Raises:
            ConfigurationError: `task_always_eager` is set.
        """
        check_not_eager(self.app.conf)
        return super().apply(*arguments, **options)

    def options_for(self, args: Any, kwargs: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a message, with what lists and monitors show of the task.

        Args:
            args: the arguments, which are described by their size.
            kwargs: the named arguments, which ours have none of.
            options: as `Celery.send_task` takes them.

        Raises:
            JobCallError: the task does not take such arguments.
        """
        if not self.accepts(args, kwargs):
            raise JobCallError(f"{self.name} cannot be sent so: it takes {self.takes}")
        return {
            **options,
            "argsrepr": options.get("argsrepr") or self.describe(args),
            "kwargsrepr": options.get("kwargsrepr") or "{}",
            "headers": {**(options.get("headers") or {}), **self.headers_of(args)},
        }

    def describe(self, args: Any) -> str:
        """Return what logs and Flower may show of the arguments."""
        return f"(<{len(dumps(args))} bytes>)"

    def headers_of(self, args: Any) -> dict[str, Any]:  # noqa: ARG002  # subclasses use it
        """Return the headers that each message of the task has."""
        return {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the task in this; what Celery takes for the end of its worker is the app's failure.

        Not a `__call__`, whose frame would stand in the traceback of each app.

        Raises:
            SentAgain: the broker or a store is away, or a thread for the loop of async jobs, so
                that it runs again later.
            AppMemoryError, AppExitError, AppControlError: the app's code ran out of memory, raised
                what is not an Exception, such as KeyboardInterrupt, or what is Celery's to raise.
        """
        request = self.request
        token, end = current_task_id.set(request.id), None
        try:
            if not request.called_directly:
                end = self._begin(request)
            yield
        except (BrokerUnavailableError, LoopUnavailableError, StoreUnavailableError) as error:
            if request.called_directly:
                raise
            self.wait_for_server(error)
        except MemoryError as error:
            raise AppMemoryError(f"{self.name} raised MemoryError: {error}") from error
        except _CONTROL as error:
            if error is getattr(request, "ending", None):
                raise
            raise AppControlError(
                f"{self.name} raised {type(error).__name__}, by which Celery would let its message "
                f"go unseen; return, or raise an exception of your own, instead: {error}"
            ) from error
        except (Exception, SystemExit):
            raise
        except BaseException as error:
            raise AppExitError(f"{self.name} raised {type(error).__name__}: {error}") from error
        finally:
            if end is not None:
                end()
            current_task_id.reset(token)

    @property
    def __trace__(self) -> Any:
        """Celery's tracer of the task, which looks for no result of an earlier delivery either."""
        if self._trace is None:
            app = _WithoutResults(self.app)
            self._trace = build_tracer(self.name, self, self.app.loader, app=app)
        return self._trace

    @__trace__.setter
    def __trace__(self, trace: Any) -> None:
        self._trace = None  # Celery's would; each process builds one

    @cached_property
    def backend(self) -> _NoBackend:
        """None: a job has no result, and one that failed must not wait for a server of results."""
        return _NoBackend(self.app)

    def retry(self, *args: Any, throw: bool = True, **kwargs: Any) -> Any:
        """Send the task again, as Celery's own does."""
        ending = self._ending(super().retry(*args, throw=False, **kwargs))
        if throw:
            raise ending
        return ending

    def _ending(self, ending: _Exception) -> _Exception:
        """Note that it is by our own doing that this delivery ends so; return the same.

        An app can raise an exception of the same class, and means something else.
        """
        self.request.ending = ending
        return ending

    def accepts(self, args: Any, kwargs: Any) -> bool:  # noqa: ARG002  # subclasses use it
        """Tell whether a message's arguments are of this task's shape."""
        return not kwargs

    def _begin(self, request: Context) -> Callable[[], None] | None:
        """Note that this is a worker; end here if the task was revoked while it was queued in it.

        Celery looks when it hands a task to its pool. In a pool of threads that is before one of
        them is free.

        A message that was delivered before is counted, since its job may be what ends workers.

        Returns:
            What must be called when the task has ended, if anything.

        Raises:
            Ignore: it was revoked.
            WorkerLostTooOftenError: its worker died too often.
        """
        in_worker.set(True)
        state = sys.modules.get("celery.worker.state")  # which only a worker has imported
        if state is not None and request.id in state.revoked:
            logger.info("Discarding revoked task: %s[%s]", self.name, request.id)
            raise self._ending(Ignore())
        if (request.delivery_info or {}).get("redelivered"):
            end: Callable[[], None] | None = self.app.deliveries.start(self.name, request.id)
            return end
        return None

    def signature_from_request(self, *arguments: Any, **options: Any) -> Any:
        """Return what sends a message again, as Celery does; its own `retry` calls it, too."""
        signature = super().signature_from_request(*arguments, **options)
        signature.options["headers"] = retry_headers(signature.options.get("headers") or {})
        return signature

    def again(
        self,
        reason: Exception,
        policy: Policy,
        attempt: int,
        headers: dict[str, Any] | None = None,
        **options: Any,
    ) -> NoReturn:
        """Send the message again, due later, and let this delivery be acknowledged.

        Raises:
            SentAgain: it was sent.
            Reject: the broker is away; this delivery is not acknowledged, and comes again.
            RetriesExhaustedError: the policy has no retry left.
        """
        delay = delay_after(reason, policy, attempt)
        if delay is None:
            raise RetriesExhaustedError(
                f"{self.name} gave up after {attempt + 1} attempts: {reason}"
            ) from reason
        request = self.request
        logger.warning("%s[%s] runs again in %g s: %s", self.name, request.id, delay, reason)
        known = {**(request.headers or {}), **(headers or {}), ERROR_HEADER: described(reason)}
        signature = self.signature_from_request(
            request, countdown=delay, argsrepr=request.argsrepr, headers=known, **options
        )
        self.send_or_requeue(signature.apply_async)
        raise self._ending(SentAgain(delay)) from reason

    def send_or_requeue(self, send: Callable[[], object]) -> None:
        """Send what shall run later; if the broker is away, what runs now is to run again instead.

        Raises:
            Reject: the broker is away; this delivery is not acknowledged, and comes again.
        """
        try:
            send()
        except (OperationalError, RedisError, OSError) as error:
            if not is_away(error):
                raise
            # kept unacknowledged: Celery logs this, and it comes again when the broker is back
            again = Reject(f"the broker is away: {error}", requeue=True)
            raise self._ending(again) from error

    def wait_for_app(self, reason: Exception) -> NoReturn:
        """Send the message again, due later, because its app is not there now.

        Raises:
            SentAgain: it was sent.
            Exception: the reason, when it waited for 10 minutes, or waiting is of no use.
        """
        waited = int((self.request.headers or {}).get(WAITED_HEADER, 0))
        definite = isinstance(reason, AppDisabledError | AppRemovedError) or (
            isinstance(reason, AppSetupError) and reason.final
        )
        if definite or UNTIL_THERE.delay(waited) is None:
            raise reason
        self.again(
            reason, UNTIL_THERE, waited, {WAITED_HEADER: waited + 1}, retries=self.request.retries
        )

    def wait_for_server(self, reason: Exception) -> NoReturn:
        """Send the message again, due later, because a server that it needs does not answer.

        Raises:
            SentAgain: it was sent.
        """
        waited = int((self.request.headers or {}).get(AWAY_HEADER, 0))
        self.again(
            reason, LOAD_AGAIN, waited, {AWAY_HEADER: waited + 1}, retries=self.request.retries
        )
