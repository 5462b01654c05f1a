"""An app whose jobs end their process, or are no good in other ways."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from posthog_jobs import RetryError, job
from tests.samples.recorder import note

if TYPE_CHECKING:
    from posthog_jobs import Meta


@job
def die(payload: str, meta: Meta) -> None:
    """End the process as the kernel does when memory is out, or as a segfault does."""
    note(meta, "die", how=payload)
    if payload == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)


@job
def fail(payload: Any, meta: Meta) -> None:
    """Fail; with the payload `stops_at` when somebody says so in the cache."""
    note(meta, "fail")
    while payload == meta.config.get("stops_at") and not meta.cache.get("go on"):
        time.sleep(0.02)
    raise ValueError(f"cannot work with {payload}")


@job
def hungry(meta: Meta) -> None:
    raise MemoryError("all of it")


@job
def interrupt(meta: Meta) -> None:
    raise KeyboardInterrupt


class MuteError(Exception):
    """It cannot tell what is wrong."""

    def __str__(self) -> str:
        raise TypeError("no text")


@job
def mute(meta: Meta) -> None:
    raise MuteError


@job
async def leave(meta: Meta) -> None:
    sys.exit(3)


@job
def without_payload(meta: Meta) -> None:
    note(meta, "without_payload")


@job
def fine(payload: Any, meta: Meta) -> None:
    note(meta, "fine", payload=payload)


@job
def not_now(meta: Meta) -> None:
    raise RetryError("the server is busy")
