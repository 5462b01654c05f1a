"""Builds what apps are given: the meta of each installation, with all its extensions."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from posthog_jobs.jobs.lane import Lane
from posthog_jobs.jobs.trigger import Jobs, Origin
from posthog_jobs.meta.cache import Cache
from posthog_jobs.meta.cursor import Cursor, Utils
from posthog_jobs.meta.geoip import GeoIP
from posthog_jobs.meta.logger import AppLogger
from posthog_jobs.meta.meta import Meta
from posthog_jobs.meta.metrics import Metrics, read_metrics
from posthog_jobs.meta.posthog import PostHog, PostHogClient
from posthog_jobs.meta.purge import purge
from posthog_jobs.meta.redis_storage import RedisStorage
from posthog_jobs.meta.sql_storage import SQLStorage
from posthog_jobs.meta.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.apps.definition import AppDefinition
    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.broker.redis import RedisServer
    from posthog_jobs.jobs.message import Outbox
    from posthog_jobs.meta.posthog import EventSink
    from posthog_jobs.meta.storage import StorageBackend
    from posthog_jobs.settings import Settings


class Metas:
    """What the extensions of all installations share in a process, and what is made of it."""

    __slots__ = ("_events", "_geoip", "_outbox", "_server", "_sink", "_storage", "_stores")

    def __init__(self, settings: Settings, server: RedisServer, outbox: Outbox) -> None:
        """Prepare the extensions; nothing is connected to or opened before it is used.

        Args:
            settings: what is configured.
            server: where `meta.cache` and `meta.metrics` live, and `meta.storage` if no database
                is configured.
            outbox: publishes jobs, and the events of `meta.posthog` if no PostHog is configured.

        Raises:
            ConfigurationError: `posthog_jobs_storage_url` cannot work.
        """
        self._server: Final = server
        self._outbox: Final = outbox
        url = settings.storage_url
        self._storage: Final[StorageBackend] = SQLStorage(url) if url else RedisStorage(server)
        self._sink: Final[EventSink] = _posthog(settings) or self._capture
        self._stores: Final = Lane("posthog_jobs.store")
        self._events: Final = Lane("posthog_jobs.posthog")
        self._geoip: Final = GeoIP(settings.geoip_path, Lane("posthog_jobs.geoip"))

    def build(self, installation: Installation) -> Meta:
        """Return a new meta of an installation."""
        app_id, definition = installation.id, installation.definition
        schema = definition.manifest.schema
        return Meta(
            app_id=app_id,
            team_id=installation.team_id,
            config=MappingProxyType(schema.values(installation.config)),
            attachments=MappingProxyType(schema.attachments(installation.config)),
            global_={},
            cache=Cache(app_id, self._server, self._stores),
            storage=Storage(app_id, self._storage, self._stores),
            jobs=Jobs(Origin(installation, self._outbox)),
            metrics=Metrics(app_id, definition.metrics, self._server, self._stores),
            utils=Utils(cursor=Cursor(app_id, self._storage, self._stores)),
            geoip=self._geoip,
            posthog=PostHog(app_id, installation.team_id, self._sink, self._events),
            logger=AppLogger(installation),
        )

    def metrics(self, app_id: str, definition: AppDefinition | None) -> dict[str, float | None]:
        """Return the values of an installation's metrics, as all workers have recorded them.

        Args:
            app_id: the installation.
            definition: its code, which declares them; None if it cannot be loaded.

        Returns:
            Name → value; what was never recorded is 0 for a `sum`, else None.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        kinds = None if definition is None else definition.metrics
        return read_metrics(app_id, kinds, self._server)

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has kept in cache, storage and metrics.

        Returns:
            How many keys there were.

        Raises:
            StoreUnavailableError: a store does not answer; some may be deleted.
        """
        return self._storage.purge(app_id) + purge(self._server, app_id)

    def _capture(self, event: dict[str, Any]) -> Callable[[], None]:
        """Take an event of `meta.posthog` for our own hooks."""
        sender = self._outbox.sender
        return partial(sender.capture, event, str(uuid4()), sender.measure(event))


def _posthog(settings: Settings) -> EventSink | None:
    host, project_key = settings.posthog_host, settings.posthog_project_key
    return PostHogClient(host, project_key).sink if host and project_key else None
