"""How an installation wants its events exported, as its config says."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.config import ConfigField
from posthog_jobs.errors import is_number

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a buffer holds, in bytes: at least, at most, and by default. A batch travels in one message.
BYTES: Final = (1, 10 * 1024 * 1024, 1024 * 1024)
#: How long an event waits in it, in seconds; PostHog's figures.
SECONDS: Final = (1, 600, 10)


#: The fields of a config that say so; every app with `export_events` has them, as in PostHog.
FIELDS: Final = tuple(
    ConfigField(key=key)
    for key in ("exportEventsBufferBytes", "exportEventsBufferSeconds", "exportEventsToIgnore")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """When a buffer of events is exported, and what never gets there.

    Attributes:
        buffer_bytes: `exportEventsBufferBytes`, the size as JSON at which it is full.
        buffer_seconds: `exportEventsBufferSeconds`, what an event waits for others.
        ignored: `exportEventsToIgnore`, names of events, in the config with commas between them.
    """

    buffer_bytes: int = BYTES[2]
    buffer_seconds: float = SECONDS[2]
    ignored: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> tuple[ExportOptions, list[str]]:
        """Read an installation's config.

        Returns:
            The options, the default or the nearest that can be in place of what cannot, and what
            is wrong with the config, a sentence each.
        """
        wrong: list[str] = []
        options = cls(
            buffer_bytes=int(_number(config, "exportEventsBufferBytes", BYTES, wrong)),
            buffer_seconds=_number(config, "exportEventsBufferSeconds", SECONDS, wrong),
            ignored=_names(config, "exportEventsToIgnore", wrong),
        )
        return options, wrong


def _number(
    config: Mapping[str, Any], field: str, limits: tuple[int, int, int], wrong: list[str]
) -> float:
    least, most, default = limits
    value = config.get(field)
    if value is None or value == "":  # a form's empty field
        return default
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if not is_number(value, -math.inf, math.inf):
        wrong.append(f"{field} is not a number; use one from {least} to {most}")
        return default
    if not least <= value <= most:
        wrong.append(f"{field} is out of range; use {least} to {most}")
    return min(max(value, least), most)


def _names(config: Mapping[str, Any], field: str, wrong: list[str]) -> frozenset[str]:
    value = config.get(field)
    if value is None:
        return frozenset()
    if not isinstance(value, str):
        wrong.append(
            f"{field} is of type {type(value).__name__}; use a string of events' names with "
            "commas between them"
        )
        return frozenset()
    return frozenset(name.strip() for name in value.split(",") if name.strip())
