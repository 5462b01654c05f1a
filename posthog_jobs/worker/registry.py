"""How a task's name finds its task, in whichever process it is first met."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from celery.app.registry import TaskRegistry

from posthog_jobs.worker.tasks import JobTask

if TYPE_CHECKING:
    from celery import Celery, Task

_JOB_TASK: Final = re.compile(
    r"posthog_jobs\.(?P<app>[A-Za-z_][A-Za-z0-9_-]{0,199})\.(?P<job>[A-Za-z_][A-Za-z0-9_]{0,199})\Z"
)


class JobRegistry(TaskRegistry):
    """Finds the task of a job's name when it is first met, in whichever process that is.

    Also a job that no installed app exports gets a task, which keeps the message until one does;
    such a task is not kept, so that messages cannot fill the registry.
    """

    app: Celery

    def __missing__(self, name: object) -> Task:
        match = _JOB_TASK.match(name) if isinstance(name, str) else None
        if match is None:
            raise self.NotRegistered(name)
        names = {"name": name, "app_name": match["app"], "job_name": match["job"]}
        task = type("JobTask", (JobTask,), {"__module__": __name__, **names})()
        task.bind(self.app)
        if self.app.runtime.is_exported(match["app"], match["job"]):
            self[name] = task
        return task
