"""`meta`: what an app's jobs and hooks are given of their installation, and how it is made."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from posthog_jobs.jobs.execution import LoopCaller
from posthog_jobs.jobs.running import current_job, current_task_id, extra, logger_with_fields
from posthog_jobs.jobs.trigger import Jobs, Origin
from posthog_jobs.meta.cache import Cache
from posthog_jobs.meta.geoip import GeoIP
from posthog_jobs.meta.metrics import Metrics
from posthog_jobs.meta.posthog import PostHog, PostHogClient
from posthog_jobs.meta.storage import Cursor, Storage, Utils

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from posthog_jobs.apps.attachment import Attachment
    from posthog_jobs.apps.definition import AppDefinition
    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.jobs.running import RunningJob
    from posthog_jobs.jobs.trigger import Outbox
    from posthog_jobs.meta.cache import CacheStore
    from posthog_jobs.meta.metrics import MetricsStore
    from posthog_jobs.meta.posthog import EventSink
    from posthog_jobs.meta.storage import StorageBackend
    from posthog_jobs.settings import Settings


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


class AppLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs to `posthog_jobs.apps.<app name>`, with the app id before each message.

    Records carry `app_id`, `team_id`, `job` and `task_id`, for formats and handlers that use
    them; the last two are None where no job, and no task, runs.
    """

    def __init__(self, installation: Installation) -> None:
        super().__init__(
            logger_with_fields(f"posthog_jobs.apps.{installation.definition.name}"),
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
        kwargs["extra"] = extra(ours, kwargs.get("extra"))
        return f"[{ours['app_id']}] {msg}", kwargs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Where all installations keep what they keep.

    Attributes:
        cache: of `meta.cache`.
        storage: of `meta.storage` and `meta.utils.cursor`.
        metrics: of `meta.metrics`.
    """

    cache: CacheStore
    storage: StorageBackend
    metrics: MetricsStore


class Metas:
    """What the extensions of all installations share in a process, and what is made of it."""

    __slots__ = ("_caller", "_events", "_geoip", "_outbox", "_sink", "_stores")

    def __init__(self, settings: Settings, stores: Stores, outbox: Outbox) -> None:
        """Prepare the extensions; nothing is connected to or opened before it is used.

        Args:
            settings: what is configured.
            stores: where `meta.cache`, `meta.storage` and `meta.metrics` live.
            outbox: publishes jobs, and the events of `meta.posthog` if no PostHog is configured.
        """
        self._stores: Final = stores
        self._outbox: Final = outbox
        self._sink: EventSink = self._capture
        if settings.posthog_host and settings.posthog_project_key:
            self._sink = PostHogClient(settings.posthog_host, settings.posthog_project_key).sink
        self._caller: Final = LoopCaller("posthog_jobs.store")
        self._events: Final = LoopCaller("posthog_jobs.posthog")
        self._geoip: Final = GeoIP(settings.geoip_path, LoopCaller("posthog_jobs.geoip"))

    def build(self, installation: Installation) -> Meta:
        """Return a new meta of an installation."""
        app_id, definition = installation.id, installation.definition
        config, attachments = definition.manifest.schema.split(installation.config)
        stores = self._stores
        return Meta(
            app_id=app_id,
            team_id=installation.team_id,
            config=MappingProxyType(config),
            attachments=MappingProxyType(attachments),
            global_={},
            cache=Cache(app_id, stores.cache, self._caller),
            storage=Storage(app_id, stores.storage, self._caller),
            jobs=Jobs(Origin(app_id, definition.name, definition.jobs, self._outbox)),
            metrics=Metrics(app_id, definition.metrics, stores.metrics, self._caller),
            utils=Utils(cursor=Cursor(app_id, stores.storage, self._caller)),
            geoip=self._geoip,
            posthog=PostHog(app_id, installation.team_id, self._sink, self._events),
            logger=AppLogger(installation),
        )

    def metrics(self, app_id: str, definition: AppDefinition | None) -> dict[str, float | None]:
        """Return the values of an installation's metrics, as all workers have recorded them.

        Args:
            app_id: the installation.
            definition: its code, which declares them; None if it cannot be loaded, for all that
                were recorded.

        Returns:
            Name → value; what was never recorded is 0 for a `sum`, else None.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        if definition is None:
            return {name: value for (_, name), value in self._stores.metrics.read(app_id).items()}
        if not definition.metrics:
            return {}
        values = self._stores.metrics.read(app_id)
        return {
            name: values.get((kind, name), 0.0 if kind == "sum" else None)
            for name, kind in definition.metrics.items()
        }

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept in cache, storage and metrics.

        Returns:
            How many keys there were.

        Raises:
            StoreUnavailableError: a store does not answer; some may be deleted.
        """
        stores = (self._stores.storage, self._stores.metrics, self._stores.cache)
        return sum(store.purge(app_id) for store in stores)

    def _capture(self, event: dict[str, Any]) -> Callable[[], None]:
        """Take an event of `meta.posthog` for our own hooks."""
        sender = self._outbox.sender
        return partial(sender.capture, event, str(uuid4()), sender.measure(event))
