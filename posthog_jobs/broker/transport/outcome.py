"""What became of a message that was published through the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
