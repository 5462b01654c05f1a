"""The configuration as `celery report` and `inspect conf` show it: without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.app.utils import Settings as CelerySettings
from celery.app.utils import filter_hidden_settings
from kombu.utils.url import maybe_sanitize_url

from posthog_jobs.masks import MASK, masked
from posthog_jobs.settings import PREFIX


class ShownSettings(CelerySettings):
    """Celery's settings, which show no config of an app, and no password of our URLs.

    Celery itself masks by the names of keys, and knows its own URLs only.
    """

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
