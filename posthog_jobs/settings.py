"""What `posthog_jobs_*` keys of the Celery configuration say, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import ConfigurationError, did_you_mean, is_number, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX: Final = "posthog_jobs_"


def _of(fits: Callable[[Any], bool], wrong: str) -> dict[str, Any]:
    """Return what a value of a setting must fit, and what to say of one that does not."""
    return {"fits": fits, "wrong": wrong}


def _url(example: str) -> dict[str, Any]:
    wrong = f"not a URL; use one such as {example}, or leave it out"
    return _of(lambda value: "://" in str(value), wrong)


_APPS: Final = _of(
    lambda value: hasattr(value, "items"),
    'of type {type}; it maps app ids to modules, such as {{"teapot": "examples.teapot"}}',
)
_COUNT: Final = _of(lambda value: is_whole(value, 1), "{value!r}; use a whole number above 0")
_TEXT: Final = _of(
    lambda value: isinstance(value, str), "of type {type}; make it a string, or leave it out"
)
_SECONDS: Final = _of(
    lambda value: is_number(value, 0, 3600) and value > 0,
    "{value!r}; use seconds above 0, up to 3600",
)
_PORT: Final = _of(
    lambda value: is_whole(value, 0, 65_535),
    "{value!r}; use a port number, such as 9808, 0 for any that is free, or leave it out to serve "
    "no metrics",
)


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

    apps: Mapping[str, Any] = field(repr=False, metadata=_APPS)
    max_payload_bytes: int = field(default=1024 * 1024, metadata=_COUNT)
    redis_url: str | None = field(default=None, repr=False, metadata=_url("redis://localhost/0"))
    storage_url: str | None = field(
        default=None,
        repr=False,
        metadata=_url("postgresql+psycopg://user:password@host/database"),
    )
    geoip_path: str | None = field(default=None, metadata=_TEXT)
    posthog_host: str | None = field(default=None, metadata=_url("https://eu.i.posthog.com"))
    posthog_project_key: str | None = field(default=None, repr=False, metadata=_TEXT)
    default_team_id: int = field(default=1, metadata=_COUNT)
    enqueue_timeout: float = field(default=5.0, metadata=_SECONDS)
    max_deliveries: int = field(default=5, metadata=_COUNT)
    max_failures: int = field(default=100_000, metadata=_COUNT)
    metrics_port: int | None = field(default=None, metadata=_PORT)

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any]) -> Settings:
        """Read and check the keys of a Celery configuration.

        Raises:
            ConfigurationError: a `posthog_jobs_` key is unknown or its value of a wrong type.
        """
        known = {f"{PREFIX}{field.name}": field for field in fields(cls)}
        values: dict[str, Any] = {"apps": {}}
        for key in conf:
            if not str(key).startswith(PREFIX):
                continue
            if key not in known:
                raise ConfigurationError(
                    f"unknown setting {key}; {did_you_mean(key, known)}the settings are "
                    f"{', '.join(sorted(known))}"
                )
            value = conf[key]
            if value is None:
                continue
            setting = known[key]
            if not setting.metadata["fits"](value):
                why = setting.metadata["wrong"].format(value=value, type=type(value).__name__)
                raise ConfigurationError(f"{key} is {why}")
            values[setting.name] = value
        settings = cls(**values)
        if bool(settings.posthog_host) != bool(settings.posthog_project_key):
            raise ConfigurationError(
                f"{PREFIX}posthog_host and {PREFIX}posthog_project_key belong together; set both, "
                "or none to capture into our own hooks"
            )
        return settings
