"""The time limits of sync jobs, which only a pool of processes can keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posthog_jobs.broker.envelope import task_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from posthog_jobs.apps.installation import Installation


def unlimited_jobs(installations: Iterable[Installation], pool: str) -> dict[str, str]:
    """Return the jobs whose time limit a pool cannot keep, each with a sentence that says so.

    Args:
        installations: who is installed.
        pool: the module of the worker's pool.

    Returns:
        Task name → warning.
    """
    if pool == "celery.concurrency.prefork":
        return {}
    name = {"thread": "threads"}.get(pool.rpartition(".")[2], pool.rpartition(".")[2])
    return {
        task_name(installation.definition.name, job.name): (
            f"job {job.name!r} of app {installation.definition.name!r} has time_limit="
            f"{job.time_limit:g}, which the pool {name} cannot keep for a sync function: it runs "
            "on. Make it async, or run the worker with --pool prefork"
        )
        for installation in installations
        for job in installation.definition.jobs.values()
        if job.time_limit is not None and not job.is_async
    }
