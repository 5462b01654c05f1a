"""The configuration of the Celery app: what differs from Celery's, and what cannot be had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from celery.app.utils import Settings as CelerySettings
from celery.app.utils import filter_hidden_settings
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import maybe_sanitize_url

from posthog_jobs.broker import rabbitmq
from posthog_jobs.broker.envelope import COMPRESSIONS, can_inflate
from posthog_jobs.errors import ConfigurationError
from posthog_jobs.redaction import MASK, masked
from posthog_jobs.settings import PREFIX

#: Celery settings that differ from Celery's own defaults; a configuration may change them.
DEFAULTS: Final = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "worker_consumer": "posthog_jobs.worker.consumer:JobConsumer",
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,  # a worker waits for its broker as long as it takes
}


#: Seconds that a retry counts for, if a configuration has retries follow without a wait.
_SHORTEST_INTERVAL: Final = 0.05


class Conf(CelerySettings):
    """Celery's settings, which show no config of an app, and no password of our URLs.

    Celery itself masks by the names of keys, and knows its own URLs only.
    """

    @classmethod
    def of(cls, settings: CelerySettings) -> Conf:
        """Return settings of Celery's, read or not, as such ones; both stay the same."""
        conf = cls({})
        conf.swap_with(settings)
        return conf

    def __getitem__(self, key: str) -> Any:
        """Return a setting, as Celery does; it asks for several at each publish and each run."""
        names = self._to_keys(key)
        for mapping in self.maps:
            for name in names:
                if name in mapping:  # where Celery lets a KeyError tell
                    return mapping[name]
        return super().__getitem__(key)  # raises, or knows what is missing

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """Return the settings, as Celery does.

        Args:
            with_defaults: also those that nobody has set.
            censored: without secrets.
        """
        table: dict[str, Any] = super().table(with_defaults, censored=False)
        if not censored:
            return table
        ours = {key: table.pop(key) for key in list(table) if key.startswith(PREFIX)}
        shown = {key: _shown(key.removeprefix(PREFIX), value) for key, value in ours.items()}
        return {**filter_hidden_settings(table), **shown}


def _shown(name: str, value: Any) -> Any:
    if name == "apps" and isinstance(value, Mapping):
        return {
            app_id: {**said, "config": MASK} if isinstance(said, Mapping) else said
            for app_id, said in value.items()
        }
    if isinstance(value, str):
        value = maybe_sanitize_url(value)
    return MASK if name == "posthog_project_key" else masked(name, value)


def retry_policy(policy: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return kombu's retry policy, with as many retries as fit into so many seconds."""
    retries, waited, interval = 0, 0.0, float(policy.get("interval_start") or 0)
    step, longest = policy.get("interval_step", 0.2), policy.get("interval_max", 1)
    while waited < seconds:
        waited += max(interval, _SHORTEST_INTERVAL if retries else 0)
        interval = min(interval + step, longest)
        retries += 1
    return {**policy, "max_retries": retries + 1}


def checked_scheme(url: str | list[str] | None) -> str:
    """Return the scheme of the first broker URL.

    Raises:
        ConfigurationError: the URL is empty, or its scheme is of no broker.
    """
    if url == "":
        raise ConfigurationError(
            "broker_url is empty; set it to redis://… or amqp://…, or leave it out for the "
            "embedded Redis"
        )
    scheme = rabbitmq.scheme(url)
    if scheme and scheme not in TRANSPORT_ALIASES and "." not in scheme:
        raise ConfigurationError(
            f"broker_url has the scheme {scheme!r}, which is not a broker's; use redis://, "
            "rediss://, redis+socket://, sentinel:// or amqp://"
        )
    return scheme


def check_formats(conf: Any) -> None:
    """Refuse a configuration that takes or sends what workers do not read.

    Raises:
        ConfigurationError: it is not JSON, or compressed with what they do not unpack; the key is
            named.
    """
    compression = conf.task_compression
    if compression is not None and not can_inflate(compression):
        raise ConfigurationError(
            f"task_compression is {compression!r:.60}, which the workers of posthog_jobs do not "
            f"unpack, since others cannot be told to stop at a size; set it to {COMPRESSIONS}"
        )
    for key in (
        "accept_content",
        "result_accept_content",
        "task_serializer",
        "result_serializer",
        "event_serializer",
    ):
        value = conf[key] or ()
        names = [value] if isinstance(value, str) else list(value)
        if not set(names) <= {"json", "application/json"}:
            raise ConfigurationError(
                f"{key} is {value!r}, and posthog_jobs takes JSON alone, since other formats can "
                f"name code to run; remove {key} from the configuration"
            )


def check_not_eager(conf: Any) -> None:
    """Refuse a configuration that runs tasks where they are sent.

    A job that is due later would run now, and one that is sent while it is awaited never end.

    Raises:
        ConfigurationError: it does.
    """
    if conf.task_always_eager:
        raise ConfigurationError(
            "task_always_eager is set, and jobs wait on a broker until they are due; remove it, "
            "and test apps without a broker by the fixture posthog_app, or by posthog_jobs.testing"
        )
