"""An app that is given something to keep to itself, and tells it where it fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from posthog_jobs import RetryError, job

if TYPE_CHECKING:
    from posthog_jobs import Meta


@job
def work(payload: Any, meta: Meta) -> None:
    meta.cache.incr("worked")


@job
def wait(payload: Any, meta: Meta) -> None:
    meta.cache.incr("waits")
    while not meta.cache.get("done"):
        time.sleep(0.02)


@job
def fail(payload: Any, meta: Meta) -> None:
    key = meta.config["api_key"]
    raise ValueError(f"the server does not take {key}")


@job
def later(payload: Any, meta: Meta) -> None:
    raise RetryError(f"not with {meta.config['api_key']}")
