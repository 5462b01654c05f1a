"""A job whose app is set up, to be called in a worker or by a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import PayloadRefusedError
from posthog_jobs.jobs.execution import run_job
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.running import Delivery, RunningJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.jobs.function import JobFunction
    from posthog_jobs.jobs.retry import Policy
    from posthog_jobs.meta.meta import Meta

#: A job that is called without a message.
BY_HAND: Final = Delivery(id="")


@dataclass(slots=True)
class ReadyJob:
    """A job whose app is set up; calling it runs it here and waits for its end.

    Attributes:
        retry: how often it is run again when it raises `RetryError`.
        run: what runs it.
    """

    retry: Policy
    run: Callable[[], None]

    def __call__(self) -> None:
        """Run the job."""
        self.run()


def check_call(job: JobFunction, payload: object, app_id: str) -> None:
    """Refuse a message that was sent when the job's function looked otherwise.

    Raises:
        PayloadRefusedError: the function does not take the payload any more, or needs one.
    """
    if payload is ABSENT and not job.takes_none:
        raise PayloadRefusedError(
            f"job {job.name!r} of app id {app_id!r} needs a payload now, and was sent with none; "
            "let its payload have a default, and replay"
        )
    if payload is not ABSENT and not job.takes_payload:
        raise PayloadRefusedError(
            f"job {job.name!r} of app id {app_id!r} takes no payload any more, and was sent with "
            f"one; write it as {job.name}(payload, meta), and replay"
        )


def call_of(
    job: JobFunction,
    payload: object,
    meta: Meta,
    delivery: Delivery,
    release: Callable[[], None],
) -> Callable[[], None]:
    """Return the call of a job's function, with `meta.job` set meanwhile.

    Args:
        job: the job.
        payload: its payload, or ABSENT.
        meta: its installation's, set up.
        delivery: what its message says of this run.
        release: called at the end.
    """
    retries = job.retry.retries
    running = RunningJob(
        id=delivery.id,
        attempt=delivery.attempt,
        due=delivery.due,
        key=delivery.key,
        app_id=meta.app_id,
        team_id=meta.team_id,
        job_name=job.name,
        max_attempts=None if retries is None else retries + 1,
    )

    def run() -> None:
        try:
            if payload is not ABSENT:
                run_job(running, job.time_limit, job.function, payload, meta)
            elif job.optional_payload:
                run_job(running, job.time_limit, job.function, meta=meta)
            else:
                run_job(running, job.time_limit, job.function, meta)
        finally:
            release()

    return run
