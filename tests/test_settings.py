from __future__ import annotations

from typing import Any

import pytest

from posthog_jobs.errors import ConfigurationError
from posthog_jobs.settings import Settings


def test_defaults() -> None:
    """Without any key there are no apps, 1 MiB of payload, the broker's Redis and team 1."""
    settings = Settings.from_conf({"broker_url": "redis://", "posthog": 1})

    assert settings == Settings(
        apps={}, max_payload_bytes=1_048_576, redis_url=None, default_team_id=1
    )


def test_every_setting() -> None:
    """Each key is read, and None means its default."""
    settings = Settings.from_conf(
        {
            "posthog_jobs_apps": {"teapot": "examples.teapot"},
            "posthog_jobs_max_payload_bytes": 5,
            "posthog_jobs_redis_url": "redis://other",
            "posthog_jobs_storage_url": "sqlite:////var/lib/jobs.db",
            "posthog_jobs_geoip_path": "/var/lib/city.mmdb",
            "posthog_jobs_posthog_host": "https://eu.i.posthog.com",
            "posthog_jobs_posthog_project_key": "phc_key",
            "posthog_jobs_default_team_id": None,
        }
    )

    assert settings == Settings(
        apps={"teapot": "examples.teapot"},
        max_payload_bytes=5,
        redis_url="redis://other",
        storage_url="sqlite:////var/lib/jobs.db",
        geoip_path="/var/lib/city.mmdb",
        posthog_host="https://eu.i.posthog.com",
        posthog_project_key="phc_key",
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("posthog_jobs_app", "did you mean 'posthog_jobs_apps'?"),
        ("posthog_jobs_max_payload", "did you mean 'posthog_jobs_max_payload_bytes'?"),
        ("posthog_jobs_xyz", "the settings are posthog_jobs_apps, posthog_jobs_default_team_id"),
        ("posthog_jobs_", "unknown setting posthog_jobs_;"),
    ],
)
def test_unknown_settings(name: str, hint: str) -> None:
    """A misspelt key is refused, with the closest one or all that there are."""
    with pytest.raises(ConfigurationError, match=f"unknown setting {name};") as caught:
        Settings.from_conf({name: 1})
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("apps", ["a"], r"posthog_jobs_apps is of type list; it maps app ids to modules"),
        ("apps", "a", r"posthog_jobs_apps is of type str"),
        (
            "max_payload_bytes",
            0,
            r"posthog_jobs_max_payload_bytes is 0; use a whole number above 0",
        ),
        ("max_payload_bytes", "1MB", r"is '1MB'; use a whole number"),
        ("max_payload_bytes", True, r"is True; use a whole number"),
        ("max_payload_bytes", 1.5, r"is 1\.5; use a whole number"),
        ("default_team_id", -1, r"posthog_jobs_default_team_id is -1; use"),
        ("default_team_id", "1", r"posthog_jobs_default_team_id is '1'; use"),
        ("redis_url", 6379, r"posthog_jobs_redis_url is not a URL; use one such as"),
        (
            "storage_url",
            "jobs.db",
            r"posthog_jobs_storage_url is not a URL; use one such as",
        ),
        ("posthog_host", "eu.i", r"posthog_jobs_posthog_host is not a URL; use one such as https:"),
        ("geoip_path", 1, r"posthog_jobs_geoip_path is of type int; make it a string"),
        ("posthog_project_key", 1, r"posthog_jobs_posthog_project_key is of type int; make it"),
        ("metrics_port", -1, r"posthog_jobs_metrics_port is -1; use a port number, such as 9808"),
        ("metrics_port", 65_536, r"posthog_jobs_metrics_port is 65536; use"),
        ("metrics_port", "9808", r"posthog_jobs_metrics_port is '9808'; use"),
        ("metrics_port", True, r"posthog_jobs_metrics_port is True; use"),
    ],
)
def test_values_that_cannot_work(name: str, value: Any, message: str) -> None:
    """A value that cannot work is refused, with the key, the value and the fix."""
    with pytest.raises(ConfigurationError, match=message):
        Settings.from_conf({f"posthog_jobs_{name}": value})
