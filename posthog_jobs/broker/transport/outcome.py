"""What became of the message that was published last."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Outcome:
    """The broker's answer to one publish.

    Attributes:
        status: `scheduled`, `replaced` (what waited under its key), `kept` (what waited under its
            key, so this message was not stored), or `queued` (it was due).
        id: task id of what waits now.
    """

    status: Literal["scheduled", "replaced", "kept", "queued"]
    id: str


#: Set by each publish that goes through the schedule, in the publisher's own thread and context.
last_outcome: Final[ContextVar[Outcome | None]] = ContextVar("last_outcome", default=None)
