"""`meta.posthog`: events that an app captures itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from posthog_jobs.errors import CaptureError, ConfigurationError, EventError
from posthog_jobs.hooks.events import check_event
from posthog_jobs.jobs.execution import after_fork

if TYPE_CHECKING:
    from posthog import Posthog

    from posthog_jobs.jobs.execution import LoopCaller

#: Takes an event, checks what is its own to check, and returns what sends it.
EventSink = Callable[[dict[str, Any]], Callable[[], None]]

_TIMEOUT: Final = 5  # seconds for a connection, and for an answer


class PostHog:
    """One installation's way to capture events."""

    __slots__ = ("_app_id", "_caller", "_sink", "_team_id")

    def __init__(self, app_id: str, team_id: int, sink: EventSink, caller: LoopCaller) -> None:
        self._app_id: Final = app_id
        self._team_id: Final = team_id
        self._sink: Final = sink
        self._caller: Final = caller

    def capture(self, event: str, properties: Mapping[str, Any] | None = None) -> Any:
        """Capture an event, in PostHog or, where none is configured, in our own hooks.

        Our own hooks are those of the installation's team, its own among them: an app whose
        `process_event` captures an event for each event that it is shown never ends.

        Args:
            event: its name.
            properties: its properties. `distinct_id` is whose event it is, else the app's own
                (`posthog-jobs-<app id>`); `timestamp` when it happened, an aware datetime or ISO
                8601, else now.

        Returns:
            None, once it is sent; in a running event loop an awaitable of that, which need not be
            awaited.

        Raises:
            EventError, PayloadError: it is not an event, or too large; nothing was sent.
            CaptureError: PostHog did not take it.
            BrokerUnavailableError: our own broker did not take it.
        """
        if properties is not None and not isinstance(properties, Mapping):
            raise EventError(
                f"the properties are of type {type(properties).__name__}; make them a mapping"
            )
        mine = {"distinct_id": f"posthog-jobs-{self._app_id}", **(properties or {})}
        happened = _moment(mine.pop("timestamp", None))
        checked = check_event(
            {
                "event": event,
                "distinct_id": mine["distinct_id"],
                "properties": mine,
                "timestamp": happened.isoformat(),
                "uuid": str(uuid4()),
            },
            default_team_id=self._team_id,
        )
        what = f"capturing {event!r} by app id {self._app_id!r}"
        return self._caller.call(self._sink(copy.deepcopy(checked)), what)


class PostHogClient:
    """The official client, made at its first use in each process.

    It sends each event before it returns, so that none is lost with a process: what a job has
    captured is there when the job is done.
    """

    __slots__ = ("__weakref__", "_client", "_host", "_project_key")

    def __init__(self, host: str, project_key: str) -> None:
        self._host: Final = host
        self._project_key: Final = project_key
        self._client: Posthog | None = None
        after_fork(self._forget_parent)

    def sink(self, event: dict[str, Any]) -> Callable[[], None]:
        """Return what sends an event."""
        return partial(self._send, event)

    def _send(self, event: dict[str, Any]) -> None:
        sent = self._made().capture(
            event["event"],
            distinct_id=str(event["distinct_id"]),
            properties=event["properties"],
            timestamp=datetime.fromisoformat(event["timestamp"]),
            uuid=event["uuid"],
        )
        if sent is None:  # the client logs why
            raise CaptureError(
                f"PostHog at {self._host} did not take the event {event['event']!r}; see the log "
                "above, and that posthog_jobs_posthog_host and _project_key are right"
            )

    def _made(self) -> Posthog:
        if self._client is None:
            try:
                from posthog import Posthog  # noqa: PLC0415  # of an extra
            except ImportError:
                raise ConfigurationError(
                    "posthog_jobs_posthog_host needs PostHog's client; pip install "
                    "'posthog-jobs[posthog]'"
                ) from None
            self._client = Posthog(
                self._project_key, host=self._host, sync_mode=True, timeout=_TIMEOUT
            )
        return self._client

    def _forget_parent(self) -> None:
        self._client = None


def _moment(timestamp: object) -> datetime:
    if timestamp is None:
        return datetime.now(UTC)
    moment: object = timestamp
    if isinstance(timestamp, str):
        try:
            moment = datetime.fromisoformat(timestamp)
        except ValueError:
            moment = None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise EventError(
            "the property timestamp is not a moment; make it an aware datetime, or ISO 8601 with "
            "its offset, or leave it out"
        )
    return moment
