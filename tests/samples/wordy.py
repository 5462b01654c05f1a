"""An app that says a lot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posthog_jobs import RetryError, job

if TYPE_CHECKING:
    from posthog_jobs import Meta


@job
def speak(meta: Meta) -> None:
    meta.logger.warning("a word", extra={"more": 1, "job": "the app's"})


@job
def shout(payload: int, meta: Meta) -> None:
    """Fail with so many characters; their end says so."""
    raise ValueError(payload * "x" + "the end of it")


@job(retry=1)
def shout_again(payload: int, meta: Meta) -> None:
    raise RetryError(payload * "x", delay=0.1)
