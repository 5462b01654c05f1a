"""What `celery report` and `inspect conf` show of the configuration."""

from __future__ import annotations

import pytest
from kombu import Connection

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import ConfigurationError
from posthog_jobs.worker.control import without_passwords

SECRET = "hunter2-secret"
CONFIG = {
    "broker_url": f"redis://user:{SECRET}@127.0.0.1:1/0",
    "broker_transport_options": {"sentinel_kwargs": {"password": SECRET}},
    "posthog_jobs_redis_url": f"redis://user:{SECRET}@127.0.0.1:1/1",
    "posthog_jobs_storage_url": f"postgresql+psycopg://user:{SECRET}@127.0.0.1/x",
    "posthog_jobs_posthog_host": "https://posthog.example",
    "posthog_jobs_posthog_project_key": SECRET,
    "posthog_jobs_apps": {
        "one": {"module": "examples.teapot", "config": {"url": SECRET, "backend": 5}},
        "two": "examples.teapot",
    },
}


def test_no_secret_is_shown() -> None:
    """Neither the report nor what `inspect conf` answers has a config, or a password of a URL."""
    app = PostHogJobs(config_source=CONFIG)
    shown = app.conf.table()
    assert shown["posthog_jobs_apps"] == {
        "one": {"module": "examples.teapot", "config": "********"},
        "two": "examples.teapot",
    }
    assert shown["posthog_jobs_redis_url"] == "redis://user:**@127.0.0.1:1/1"
    for text in (app.bugreport(), repr(shown), repr(app.conf.table(with_defaults=True))):
        assert SECRET not in text
    assert SECRET not in repr(app.settings)
    assert (
        app.conf.table(censored=False)["posthog_jobs_redis_url"] == CONFIG["posthog_jobs_redis_url"]
    )


@pytest.mark.parametrize(
    "url",
    [f"redis+socket://:{SECRET}@/tmp/s?virtual_host=1", f"redis://u:{SECRET}@one;redis://two"],
)
def test_no_password_of_a_connection_is_shown(url: str) -> None:
    """What `inspect stats` answers has none, also where kombu takes a URL for a host's name."""
    shown = without_passwords({"broker": Connection(url).info()})
    assert SECRET not in repr({**shown["broker"], "password": None})
    assert "**@" in repr(shown)


@pytest.mark.parametrize(
    "setting", ["accept_content", "result_accept_content", "event_serializer", "result_serializer"]
)
def test_json_alone(setting: str) -> None:
    """No setting lets a process of ours read anything but JSON."""
    value: object = ["json", "pickle"] if setting.endswith("content") else "pickle"
    app = PostHogJobs(config_source={"broker_url": "redis://127.0.0.1:1/0", setting: value})
    with pytest.raises(ConfigurationError, match=setting):
        _ = app.runtime
