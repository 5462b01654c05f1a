"""What may pass between an app under test and the test."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from posthog_jobs.errors import AppExitError, PostHogJobsError
from posthog_jobs.jobs.lane import in_event_loop

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def as_worker() -> Iterator[None]:
    """Let app code end the process no more than it can in a worker.

    Ctrl-C, and what `pytest.fail` raises, are the test's own, and pass.
    """
    try:
        yield
    except SystemExit as error:
        raise AppExitError(
            f"the app called sys.exit({error.code!r}); return, or raise an exception, instead"
        ) from error


def refuse_event_loop() -> None:
    """Raise PostHogJobsError in an event loop, which no hook can be waited for in."""
    if in_event_loop():
        raise PostHogJobsError(
            "an app under test is run from sync code; in an async test write, for one, "
            "`await asyncio.to_thread(app.process_event, event)`"
        )
