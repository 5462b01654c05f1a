"""An app of the fixture that exports events and runs by the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posthog_jobs import RetryError
from tests.wire.kettle import A_DAY, ran

if TYPE_CHECKING:
    from posthog_jobs import Meta


def export_events(events: list[dict[str, Any]], meta: Meta) -> None:
    if not meta.config.get("water"):
        raise RetryError("the shop is closed", delay=A_DAY)
    ran(meta, "export_events", [event["event"] for event in events])


def run_every_hour(meta: Meta) -> None:
    ran(meta, "run_every_hour", None)
