"""The app whose way is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posthog_jobs import job

if TYPE_CHECKING:
    from posthog_jobs import Meta


@job
def run(payload: object, meta: Meta) -> None: ...


@job
def fail(payload: object, meta: Meta) -> None:
    raise ValueError("this job fails")
