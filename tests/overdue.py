"""Jobs that are overdue, though nobody has waited for that."""

from __future__ import annotations

from typing import Any

from posthog_jobs.broker.envelope import partition_of
from posthog_jobs.broker.redis import Keys


def bring_forward(client: Any, app_id: str, job: str, seconds: float) -> None:
    """Let what waits of a job of the recorder app be due so many seconds sooner.

    Args:
        client: of the broker; no worker may be at it.
        app_id: the installation.
        job: the job's name.
        seconds: how many.
    """
    keys, partition = Keys(), partition_of(app_id, f"posthog_jobs.recorder.{job}")
    for task_id in client.zrange(keys.due(partition), 0, -1):
        client.zincrby(keys.due(partition), -1000 * seconds, task_id)
    client.zincrby(keys.heads, -1000 * seconds, partition)
