"""What `posthog_jobs_*` keys of the Celery configuration say, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import ConfigurationError, did_you_mean, is_number, is_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "posthog_jobs_"
_LONGEST_TIMEOUT: Final = 3600
_LAST_PORT: Final = 65_535

_URLS: Final = {
    "redis_url": "redis://localhost:6379/0",
    "storage_url": "postgresql+psycopg://user:password@host/database",
    "posthog_host": "https://eu.i.posthog.com",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings; each field is the Celery key `posthog_jobs_<field>`.

    Attributes:
        apps: app id → module, path, or a mapping of what `installations` knows.
        max_payload_bytes: the largest payload or event, in bytes of JSON.
        redis_url: where `meta.cache` and `meta.storage` live; None: on the broker's Redis.
        storage_url: the database of `meta.storage`, as SQLAlchemy writes it; None: on Redis.
        geoip_path: the `.mmdb` file of `meta.geoip`.
        posthog_host: where `meta.posthog` sends events; None: into our own hooks.
        posthog_project_key: the key of the project there.
        default_team_id: the team of events and installations that name none.
        enqueue_timeout: seconds for which a job is sent again while the broker does not take it.
        max_deliveries: how often a job whose worker died is delivered again.
        max_failures: how many failed jobs are kept on the broker; the oldest go first.
        metrics_port: where a worker serves its metrics, on the loopback interface; 0: on any port
            that is free; None: nowhere.
    """

    apps: Mapping[str, Any] = field(repr=False)
    max_payload_bytes: int = 1024 * 1024
    redis_url: str | None = field(default=None, repr=False)
    storage_url: str | None = field(default=None, repr=False)
    geoip_path: str | None = None
    posthog_host: str | None = None
    posthog_project_key: str | None = field(default=None, repr=False)
    default_team_id: int = 1
    enqueue_timeout: float = 5.0
    max_deliveries: int = 5
    max_failures: int = 100_000
    metrics_port: int | None = None

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any]) -> Settings:
        """Read and check the keys of a Celery configuration.

        Raises:
            ConfigurationError: a `posthog_jobs_` key is unknown or its value of a wrong type.
        """
        known = {f"{PREFIX}{field.name}": field.name for field in fields(cls)}
        values: dict[str, Any] = {"apps": {}}
        for key in conf:
            if not str(key).startswith(PREFIX):
                continue
            if key not in known:
                raise ConfigurationError(
                    f"unknown setting {key}; {did_you_mean(key, known)}the settings are "
                    f"{', '.join(sorted(known))}"
                )
            if conf[key] is not None:
                values[known[key]] = conf[key]
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if not hasattr(self.apps, "items"):
            raise ConfigurationError(
                f"{PREFIX}apps is of type {type(self.apps).__name__}; it maps app ids to modules, "
                'such as {"teapot": "examples.teapot"}'
            )
        self._check_numbers()
        for name, example in _URLS.items():
            if getattr(self, name) is not None and "://" not in str(getattr(self, name)):
                raise ConfigurationError(
                    f"{PREFIX}{name} is not a URL; use one such as {example}, or leave it out"
                )
        for name in ("geoip_path", "posthog_project_key"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise ConfigurationError(
                    f"{PREFIX}{name} is of type {type(getattr(self, name)).__name__}; make it a "
                    "string, or leave it out"
                )
        if bool(self.posthog_host) != bool(self.posthog_project_key):
            raise ConfigurationError(
                f"{PREFIX}posthog_host and {PREFIX}posthog_project_key belong together; set both, "
                "or none to capture into our own hooks"
            )

    def _check_numbers(self) -> None:
        for name in ("max_payload_bytes", "default_team_id", "max_deliveries", "max_failures"):
            value = getattr(self, name)
            if not is_whole(value, 1):
                raise ConfigurationError(f"{PREFIX}{name} is {value!r}; use a whole number above 0")
        port = self.metrics_port
        if port is not None and not is_whole(port, 0, _LAST_PORT):
            raise ConfigurationError(
                f"{PREFIX}metrics_port is {port!r}; use a port number, such as 9808, 0 for any "
                "that is free, or leave it out to serve no metrics"
            )
        timeout = self.enqueue_timeout
        if not (is_number(timeout, 0, _LONGEST_TIMEOUT) and timeout):
            raise ConfigurationError(
                f"{PREFIX}enqueue_timeout is {timeout!r}; use seconds above 0, up to "
                f"{_LONGEST_TIMEOUT}"
            )
