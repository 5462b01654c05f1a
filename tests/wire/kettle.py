"""The app whose messages and keys are in the fixture: without water its jobs fail, each its way."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from posthog_jobs import RetryError, job

if TYPE_CHECKING:
    from posthog_jobs import Meta, PluginEvent

#: As long as a `RetryError` may ask for, in seconds.
A_DAY = 86_400

metrics = {"cups": "sum", "hottest": "max", "coldest": "min"}


def ran(meta: Meta, what: str, payload: object) -> None:
    """Note that a job ran, with what it was given."""
    running = meta.job
    details = {} if running is None else {"id": running.id, "key": running.key}
    meta.cache.lpush("ran", [{"what": what, "payload": payload, "app_id": meta.app_id, **details}])


def setup_plugin(meta: Meta) -> None:
    if meta.config.get("setup") == "fails":
        raise ValueError("there is no kettle")


def on_event(event: PluginEvent, meta: Meta) -> None:
    if not meta.config.get("water"):
        raise RetryError("no water for the event", delay=A_DAY)
    ran(meta, "on_event", event)


@job
def note(payload: object, meta: Meta) -> None:
    ran(meta, "note", payload)


@job
def nothing(meta: Meta) -> None:
    ran(meta, "nothing", None)


@job(name="brewAsync")
async def brew_async(payload: object, meta: Meta) -> None:
    ran(meta, "brewAsync", payload)


@job
def again(payload: object, meta: Meta) -> None:
    if not meta.config.get("water"):
        raise RetryError("no water yet ☕", delay=A_DAY)
    ran(meta, "again", payload)


@job(retry=False)
def give_up(payload: object, meta: Meta) -> None:
    if not meta.config.get("water"):
        raise RetryError("no water at all")
    ran(meta, "give_up", payload)


@job(time_limit=0.2)
async def boil_dry(payload: object, meta: Meta) -> None:
    if not meta.config.get("water"):
        await asyncio.sleep(60)
    ran(meta, "boil_dry", payload)


@job
def burn(payload: Any, meta: Meta) -> None:
    if not meta.config.get("water"):
        raise ValueError(f"burnt {payload!r}")
    ran(meta, "burn", payload)


@job
def explode(payload: object, meta: Meta) -> None:
    if not meta.config.get("water"):
        os.kill(os.getpid(), signal.SIGKILL)
    ran(meta, "explode", payload)


@job
def hold(payload: object, meta: Meta) -> None:
    """Run until the worker is killed, unless there is water."""
    meta.cache.lpush("held", [payload])
    while not meta.config.get("water"):
        time.sleep(0.02)
    ran(meta, "hold", payload)
