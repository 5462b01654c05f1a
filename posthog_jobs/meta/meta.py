"""`meta`: what an app's jobs and hooks are given of their installation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posthog_jobs.jobs.running import current_job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.apps.attachment import Attachment
    from posthog_jobs.jobs.running import RunningJob
    from posthog_jobs.jobs.trigger import Jobs
    from posthog_jobs.meta.cache import Cache
    from posthog_jobs.meta.cursor import Utils
    from posthog_jobs.meta.geoip import GeoIP
    from posthog_jobs.meta.logger import AppLogger
    from posthog_jobs.meta.metrics import Metrics
    from posthog_jobs.meta.posthog import PostHog
    from posthog_jobs.meta.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """An installation, as its own code sees it. Rebuilt from the app id in every process.

    Attributes:
        app_id: the installation's id.
        team_id: whose events it sees.
        config: what the operator configured, without attachments; read-only.
        attachments: the files among it, by their field; read-only.
        global_: a dict of this process and installation, to keep connections and the like in.
        cache: values with a time to live, counters and lists, on Redis.
        storage: values that stay, on Redis or in a database.
        jobs: the app's jobs, to be triggered.
        metrics: the numbers that the app declares, to be recorded.
        utils: `utils.cursor`, whole numbers that several workers advance.
        geoip: where an IP address is.
        posthog: captures events.
        logger: logging that names the app, the job and the task.
    """

    app_id: str
    team_id: int
    config: Mapping[str, Any] = field(repr=False)
    attachments: Mapping[str, Attachment] = field(repr=False)
    global_: dict[str, Any] = field(repr=False)
    cache: Cache
    storage: Storage
    jobs: Jobs
    metrics: Metrics
    utils: Utils
    geoip: GeoIP
    posthog: PostHog
    logger: AppLogger

    @property
    def job(self) -> RunningJob | None:
        """The job that is running: its id, attempt, max_attempts, due and key; None in hooks."""
        return current_job.get()
