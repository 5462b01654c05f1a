"""An installed app whose jobs go to a sender that keeps them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from posthog_jobs.apps.definition import define_app
from posthog_jobs.apps.installation import Installation
from posthog_jobs.errors import PayloadTooLargeError
from posthog_jobs.jobs.execution import LoopCaller
from posthog_jobs.jobs.message import Steered
from posthog_jobs.jobs.trigger import Jobs, Origin, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.jobs.message import JobMessage, Sender


class Recorder:
    """A sender that keeps what it is given; it can be told to fail."""

    def __init__(self) -> None:
        self.sent: list[JobMessage] = []
        self.captured: list[dict[str, Any]] = []
        self.exported: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def now(self) -> datetime:
        return datetime.now(UTC)

    def measure(self, payload: object) -> int:
        size = len(repr(payload))
        if size > 1000:
            raise PayloadTooLargeError(f"{size} bytes, over the limit of 1000")
        return size

    def due(self, moment: datetime, now: datetime) -> datetime:
        return moment

    def send(self, message: JobMessage) -> tuple[str, datetime]:
        if self.error is not None:
            raise self.error
        self.sent.append(message)
        return message.id, message.due

    def capture(self, event: dict[str, Any], task_id: str, size: int) -> None:
        if self.error is not None:
            raise self.error
        self.captured.append(event)

    def flush_export(self, app_id: str, delay: float) -> None:
        self._note(("flush", app_id, delay))

    def export_events(
        self,
        app_id: str,
        events: list[dict[str, Any]],
        task_id: str,
        *,
        delay: float = 0,
        retries: int = 0,
    ) -> None:
        self._note(("export", app_id, events, delay, retries))

    def _note(self, exported: tuple[Any, ...]) -> None:
        if self.error is not None:
            raise self.error
        self.exported.append(exported)

    def cancel(self, task_id: str) -> Steered:
        waits = any(message.id == task_id for message in self.sent)
        self.sent = [message for message in self.sent if message.id != task_id]
        return Steered.CANCELLED if waits else Steered.UNKNOWN

    def reschedule(self, task_id: str, at: datetime) -> Steered:
        for place, message in enumerate(self.sent):
            if message.id == task_id:
                self.sent[place] = replace(message, due=at)
                return Steered.RESCHEDULED
        return Steered.UNKNOWN


def either(payload: Any = None, meta: Any = None) -> None: ...
def retry_request(request: Any, meta: Any) -> None: ...
def clean_up(meta: Any) -> None: ...


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "retryRequest": retry_request,
    "clean_up": clean_up,
    "either": either,
    "keys": retry_request,
    "_private": clean_up,
}


def make_jobs(sender: Sender, functions: dict[str, Callable[..., Any]] | None = None) -> Jobs:
    namespace = {"jobs": FUNCTIONS if functions is None else functions, "on_event": retry_request}
    installation = Installation(
        id="one",
        definition=define_app("teapot", "teapot", namespace),
        config={},
        team_id=1,
        version=1,
    )
    definition = installation.definition
    outbox = Outbox(sender, LoopCaller("test"))
    return Jobs(Origin(installation.id, definition.name, definition.jobs, outbox))
