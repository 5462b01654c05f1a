"""The task of a job, the one that all of ours are, and how a task is found by its name."""

from __future__ import annotations

import logging
import re
import sys
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from celery import Task
from celery.app.registry import TaskRegistry
from celery.app.trace import build_tracer
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry, Terminated, WorkerLostError
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps

from posthog_jobs import errors
from posthog_jobs.broker import envelope
from posthog_jobs.broker.redis import UNREACHABLE
from posthog_jobs.broker.transport.sending import is_away
from posthog_jobs.jobs.due import moment_of
from posthog_jobs.jobs.execution import in_worker
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.retry import LOAD_AGAIN, NEVER, UNTIL_THERE, delay_after
from posthog_jobs.jobs.running import Delivery, current_task_id
from posthog_jobs.worker.configuration import check_not_eager
from posthog_jobs.worker.job_ends import SentAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery
    from celery.app.task import Context
    from celery.worker.consumer import Consumer

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.jobs.execution import ReadyJob
    from posthog_jobs.jobs.retry import Policy

logger = logging.getLogger(__name__)

_Exception = TypeVar("_Exception", bound=Exception)

#: By which Celery is told that a message is dealt with, or that its worker is gone.
_CONTROL: Final = (Ignore, Reject, Retry, Terminated, WorkerLostError)

#: After which a task may be run again later.
_MAY_PASS: Final = (
    errors.AppError,
    errors.BrokerUnavailableError,
    errors.LoopUnavailableError,
    errors.RetryError,
    errors.StoreUnavailableError,
    errors.UnknownJobError,
)


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

    Request = "posthog_jobs.worker.requests:Request"
    abstract = True


class DurableTask(Task):
    """A task whose message stays on the broker until it has run, and shows no contents."""

    Request = "posthog_jobs.worker.requests:JobRequest"
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
    #: Whether the pool can keep the time limits that jobs have in this worker's code.
    limits_jobs = False
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
            raise errors.JobCallError(f"{self.name} cannot be sent so: it takes {self.takes}")
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

    def accepts(self, args: Any, kwargs: Any) -> bool:  # noqa: ARG002  # subclasses use it
        """Tell whether a message's arguments are those of this task."""
        return not kwargs

    def ready(self, *args: Any) -> ReadyJob:
        """Return what runs the task's hook or job here, with its app set up.

        Raises:
            AppError, UnknownJobError: the app, or what it shall run, is not there now.
        """
        raise NotImplementedError

    def run(self, *args: Any) -> None:
        """Run the task here, as its function; who calls it gets what it raises."""
        self.ready(*args).run()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; what Celery would take for the end of its worker is a failure of the app.

        Raises:
            SentAgain: it raised `RetryError`, or its app, the broker, a store, or a thread for the
                loop of async jobs is not there now, so that it runs again later.
            AppRaisedError: the app's code ran out of memory, raised what is not an Exception, such
                as KeyboardInterrupt, or what is Celery's to raise.
        """
        request = self.request
        if request.called_directly:
            return super().__call__(*args, **kwargs)
        token, end, job = current_task_id.set(request.id), None, None
        try:
            end = self._begin(request)
            job = self.ready(*args)
            return job.run()  # itself: each frame of ours stands in the traceback of an app
        except _MAY_PASS as error:
            self._wait(error, job)
            raise
        except MemoryError as error:
            raise errors.AppRaisedError(f"{self.name} raised MemoryError: {error}") from error
        except _CONTROL as error:
            if error is getattr(request, "ending", None):
                raise
            raise errors.AppRaisedError(
                f"{self.name} raised {type(error).__name__}, by which Celery would let its message "
                f"go unseen; return, or raise an exception of your own, instead: {error}"
            ) from error
        except (Exception, SystemExit):
            raise
        except BaseException as error:
            what = f"{self.name} raised {type(error).__name__}: {error}"
            raise errors.AppRaisedError(what) from error
        finally:
            if end is not None:
                end()
            current_task_id.reset(token)

    def _wait(self, error: Exception, job: ReadyJob | None) -> None:
        """Send the message again, due later, if that may be of use; `job` is what has begun.

        Raises:
            SentAgain: it was sent.
        """
        retries, headers = self.request.retries, self.request.headers or {}
        if isinstance(error, errors.RetryError):
            policy = NEVER if job is None else job.retry
            self.again(error, policy, retries, retries=retries + 1)
        if not isinstance(error, errors.AppError | errors.UnknownJobError):  # a server is away
            name, waits = envelope.AWAY_HEADER, LOAD_AGAIN
        elif job is None and not _is_definite(error):
            name, waits = envelope.WAITED_HEADER, UNTIL_THERE
        else:
            return
        waited = int(headers.get(name, 0))
        if waits.delay(waited) is not None:
            self.again(error, waits, waited, {name: waited + 1}, retries=retries)

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
        """Send the task again, as Celery's own does.

        Raises:
            Reject: the broker is away; this delivery is not acknowledged, and comes again.
        """
        try:
            ending: Exception = super().retry(*args, throw=False, **kwargs)
        except Reject as unsent:
            self._requeue_if_away(unsent.reason)
            raise unsent.reason from None
        self._ending(ending)
        if throw:
            raise ending
        return ending

    def _ending(self, ending: _Exception) -> _Exception:
        """Note that it is by our own doing that this delivery ends so; return the same.

        An app can raise an exception of the same class, and means something else.
        """
        self.request.ending = ending
        return ending

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
        headers = signature.options.get("headers") or {}
        signature.options["headers"] = envelope.retry_headers(headers)
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
            raise errors.RetriesExhaustedError(
                f"{self.name} gave up after {attempt + 1} attempts: {reason}"
            ) from reason
        request = self.request
        logger.warning("%s[%s] runs again in %g s: %s", self.name, request.id, delay, reason)
        said = {**(headers or {}), envelope.ERROR_HEADER: envelope.described(reason)}
        known = {**(request.headers or {}), **said}
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
        except Exception as error:
            self._requeue_if_away(error)
            raise

    def _requeue_if_away(self, error: Exception) -> None:
        if isinstance(error, (OperationalError, *UNREACHABLE)) and is_away(error):
            # kept unacknowledged: Celery logs this, and it comes again when the broker is back
            again = Reject(f"the broker is away: {error}", requeue=True)
            raise self._ending(again) from error


def _is_definite(error: Exception) -> bool:
    """Tell whether it is of no use to wait for an app, which somebody has switched off, for one."""
    return isinstance(error, errors.AppDisabledError | errors.AppRemovedError) or (
        isinstance(error, errors.AppSetupError) and error.final
    )


class JobTask(DurableTask):
    """One exported job. Which function it calls is looked up when it runs, by app id."""

    abstract = True
    app_name: str
    job_name: str
    takes = (
        'the app id and then the payload, if there is one, as args: ["teapot", {"url": "x"}]; '
        "there are no kwargs"
    )

    def start_strategy(self, app: Celery, consumer: Consumer, **options: Any) -> Any:
        """Return what a consumer does with the task's messages."""
        self.limits_jobs = consumer.pool.uses_semaphore  # as processes do, which can be ended
        return super().start_strategy(app, consumer, **options)

    def time_limit_of(self, app_id: str) -> float | None:
        """Return the seconds after which the pool must end the job; None if it need not."""
        seconds: float | None = self.app.runtime.pool_limit(app_id, self.job_name)
        return seconds

    def ready(self, app_id: str, payload: object = ABSENT) -> ReadyJob:
        """Return what runs the job here, with its app set up."""
        ready: ReadyJob = self.app.runtime.job(
            self.app_name, self.job_name, app_id, payload, _delivery(self.request)
        )
        return ready

    def accepts(self, args: Any, kwargs: Any) -> bool:
        """Tell whether the arguments are an app id, and perhaps a payload."""
        return not kwargs and len(args) in (1, 2) and isinstance(args[0], str)

    def headers_of(self, args: Any) -> dict[str, Any]:
        """Return the app id, by which the schedule and failed jobs are listed."""
        return {envelope.APP_HEADER: args[0]}

    def describe(self, args: Any) -> str:
        """Return the app id, and the payload's size if there is one."""
        app_id, *payload = args
        return envelope.describe(app_id, len(dumps(payload[0])) if payload else None)


def _delivery(request: Context) -> Delivery:
    """Return what a job's message says of this run."""
    headers = request.headers or {}
    due = request.eta  # of a job that waited on RabbitMQ
    if envelope.DUE_HEADER in headers:
        due = moment_of(headers[envelope.DUE_HEADER])
    elif due is not None:
        due = datetime.fromisoformat(due)
    return Delivery(
        id=request.id,
        attempt=request.retries + 1,
        due=due,
        key=headers.get(envelope.KEY_HEADER) or headers.get(envelope.KEPT_KEY_HEADER),
    )


_JOB_TASK: Final = re.compile(
    r"posthog_jobs\.(?P<app>[A-Za-z_][A-Za-z0-9_-]{0,199})\.(?P<job>[A-Za-z_][A-Za-z0-9_]{0,199})\Z"
)


class JobRegistry(TaskRegistry):
    """Finds the task of a job's name when it is first met, in whichever process that is.

    Also a job that no installed app exports gets a task, which keeps the message until one does;
    such a task is not kept, so that messages cannot fill the registry.
    """

    app: Celery

    def known(self, name: str) -> Task | None:
        """Return the task of a name, if it can be one's: `celery call` and beat send by names."""
        try:
            return self[name]
        except self.NotRegistered:
            return None

    def register_jobs(self, installations: Iterable[Installation]) -> list[str]:
        """Register a task for each job that is exported now, and drop those of other jobs.

        Returns:
            The names of the tasks that were dropped.
        """
        exported = {
            envelope.task_name(installation.definition.name, job_name)
            for installation in installations
            for job_name in installation.definition.jobs
        }
        dropped = [
            name
            for name, task in list(self.items())
            if isinstance(task, JobTask) and name not in exported
        ]
        for name in dropped:
            del self[name]
        for name in exported:
            self[name]
        return dropped

    def __missing__(self, name: object) -> Task:
        match = _JOB_TASK.match(name) if isinstance(name, str) else None
        if match is None:
            raise self.NotRegistered(name)
        names = {"name": name, "app_name": match["app"], "job_name": match["job"]}
        task = type("JobTask", (JobTask,), {"__module__": __name__, **names})()
        task.bind(self.app)
        if self.app.runtime.is_exported(match["app"], match["job"]):
            self[name] = task
        return task
