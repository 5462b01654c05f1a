"""`meta.logger`: standard logging that says which app speaks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from posthog_jobs.installations import Installation


class AppLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs to `posthog_jobs.apps.<app name>`, with the app id before each message.

    Records carry `app_id` and `team_id`, for formats and handlers that use them.
    """

    def __init__(self, installation: Installation) -> None:
        super().__init__(
            logging.getLogger(f"posthog_jobs.apps.{installation.definition.name}"),
            {"app_id": installation.id, "team_id": installation.team_id},
        )

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        """Put the app id before the message, and both ids into the record."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return f"[{kwargs['extra']['app_id']}] {msg}", kwargs
