"""A `meta` alone, to call one function of an app with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posthog_jobs.testing.tester import AppTester

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.meta.meta import Meta
    from posthog_jobs.testing.source import App


def create_meta(
    app: App | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    app_id: str = "app",
    team_id: int = 1,
) -> Meta:
    """Return a `meta` with cache and storage in memory.

    Args:
        app: whose jobs `meta.jobs` has, as for `AppTester`; None for none.
        config: `meta.config`.
        app_id: the installation's id.
        team_id: its team.
    """
    if app is None:
        app = {"setup_plugin": lambda meta: None}  # noqa: ARG005  # a hook has this parameter
    return AppTester(app, config=config, app_id=app_id, team_id=team_id).meta
