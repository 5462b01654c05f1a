"""The app's `conf`: Celery's settings, found sooner, and shown without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.app.utils import Settings as CelerySettings
from celery.app.utils import filter_hidden_settings
from kombu.utils.url import maybe_sanitize_url

from posthog_jobs.redaction import MASK, masked
from posthog_jobs.settings import PREFIX


class Conf(CelerySettings):
    """Celery's settings, which show no config of an app, and no password of our URLs.

    Celery itself masks by the names of keys, and knows its own URLs only.
    """

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
