"""`meta.logger`: standard logging that says which app speaks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from posthog_jobs.jobs.running import current_job, current_task_id

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from posthog_jobs.apps.installation import Installation


class AppLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs to `posthog_jobs.apps.<app name>`, with the app id before each message.

    Records carry `app_id`, `team_id`, `job` and `task_id`, for formats and handlers that use
    them; the last two are None where no job, and no task, runs.
    """

    def __init__(self, installation: Installation) -> None:
        super().__init__(
            logging.getLogger(f"posthog_jobs.apps.{installation.definition.name}"),
            {"app_id": installation.id, "team_id": installation.team_id},
        )

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        """Put the app id before the message, and into the record what speaks."""
        job = current_job.get()
        ours = {
            **(self.extra or {}),
            "job": job and job.job_name,
            "task_id": current_task_id.get(),
        }
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **ours}
        return f"[{ours['app_id']}] {msg}", kwargs
