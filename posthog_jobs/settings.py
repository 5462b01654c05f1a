"""What `posthog_jobs_*` keys of the Celery configuration say, checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "posthog_jobs_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings; each field is the Celery key `posthog_jobs_<field>`.

    Attributes:
        apps: app id → module, path, or a mapping of what `installations` knows.
        max_payload_bytes: the largest payload or event, in bytes of JSON.
        redis_url: where `meta.cache` and `meta.storage` live; None: on the broker's Redis.
        default_team_id: the team of events and installations that name none.
    """

    apps: Mapping[str, Any]
    max_payload_bytes: int = 1024 * 1024
    redis_url: str | None = None
    default_team_id: int = 1

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any]) -> Settings:
        """Read and check the keys of a Celery configuration.

        Raises:
            ConfigurationError: a `posthog_jobs_` key is unknown or its value of a wrong type.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {"apps": {}}
        for key in conf:
            if not str(key).startswith(PREFIX):
                continue
            name = str(key).removeprefix(PREFIX)
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {PREFIX}{close[0]}? " if close else ""
                every = ", ".join(f"{PREFIX}{field}" for field in sorted(known))
                raise ConfigurationError(f"unknown setting {key}; {hint}the settings are {every}")
            if conf[key] is not None:
                values[name] = conf[key]
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if not hasattr(self.apps, "items"):
            raise ConfigurationError(
                f"{PREFIX}apps is of type {type(self.apps).__name__}; it maps app ids to modules, "
                'such as {"teapot": "examples.teapot"}'
            )
        for name in ("max_payload_bytes", "default_team_id"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{PREFIX}{name} is {value!r}; use a whole number above 0")
        if self.redis_url is not None and "://" not in str(self.redis_url):
            raise ConfigurationError(
                f"{PREFIX}redis_url is no URL; use one such as redis://localhost:6379/0, or leave "
                "it out"
            )
