"""`meta`: what an app's jobs and hooks are given of their installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.extensions.cache import Cache
    from posthog_jobs.extensions.logger import AppLogger
    from posthog_jobs.extensions.storage import Storage
    from posthog_jobs.jobs import Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """An installation, as its own code sees it. Rebuilt from the app id in every process.

    Attributes:
        app_id: the installation's id.
        team_id: whose events it sees.
        config: what the operator configured; read-only.
        global_: a dict of this process and installation, to keep connections and the like in.
        cache: values with a time to live, counters and lists, on Redis.
        storage: values that stay.
        jobs: the app's jobs, to be triggered.
        logger: logging that names the app.
    """

    app_id: str
    team_id: int
    config: Mapping[str, Any]
    global_: dict[str, Any]
    cache: Cache
    storage: Storage
    jobs: Jobs
    logger: AppLogger
