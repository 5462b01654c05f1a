"""An app that goes on, and is to be run again, when a file is there: its server is away then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthog_jobs import RetryError, job
from tests.samples.recorder import note

if TYPE_CHECKING:
    from posthog_jobs import Meta, PluginEvent


def wait_for_gate(meta: Meta) -> None:
    gate = Path(meta.config["gate"])
    while not gate.exists():
        time.sleep(0.02)


def teardown_plugin(meta: Meta) -> None:
    meta.storage.set("torn down", value=True)
    Path(f"{meta.config['gate']}.torn").touch()


@job
def write(payload: Any, meta: Meta) -> None:
    """Write, and once more when the file is there."""
    note(meta, "write")
    wait_for_gate(meta)
    meta.storage.set("written", payload)
    meta.cache.set("written", payload)


def on_event(event: PluginEvent, meta: Meta) -> None:
    first = not Path(meta.config["gate"]).exists()
    note(meta, "on_event", first=first)
    if first:
        wait_for_gate(meta)
        raise RetryError("not now", delay=0)
