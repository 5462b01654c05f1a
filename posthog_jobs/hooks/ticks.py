"""When `run_every_minute`, `run_every_hour` and `run_every_day` run: on the boundary, in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Hook → how long it is from one tick to the next.
PERIODS: Final[Mapping[str, timedelta]] = MappingProxyType(
    {
        "run_every_minute": timedelta(minutes=1),
        "run_every_hour": timedelta(hours=1),
        "run_every_day": timedelta(days=1),
    }
)

#: The names of the hooks' tasks.
TASKS: Final = tuple(f"posthog_jobs.{hook}" for hook in PERIODS)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMESPACE: Final = UUID("0c3bb7a4-2f0e-5d0c-9d0e-7a0f5f6f2b11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One run of a hook that is due.

    Attributes:
        app_id: the installation.
        hook: Python's name of the hook.
        boundary: the minute, hour or day that it stands for, by its start.
    """

    app_id: str
    hook: str
    boundary: datetime

    @property
    def id(self) -> str:
        """The task id: the same whoever schedules the tick, so that it waits once."""
        return str(uuid5(_NAMESPACE, f"{self.app_id} {self.hook} {self.boundary.isoformat()}"))

    @property
    def is_made_up(self) -> bool:
        """Whether it runs later where it could not run in time."""
        return self.hook != "run_every_minute"


def boundary_before(hook: str, moment: datetime) -> datetime:
    """Return the last boundary of a hook that is not after an aware moment."""
    return moment.astimezone(UTC) - (moment - _EPOCH) % PERIODS[hook]


def boundary_after(hook: str, moment: datetime) -> datetime:
    """Return the first boundary of a hook that is after an aware moment."""
    return boundary_before(hook, moment) + PERIODS[hook]
