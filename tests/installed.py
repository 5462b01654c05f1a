"""Installations and their meta, made without code on disk and without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from posthog_jobs.apps.definition import define_app
from posthog_jobs.apps.installation import Installation
from posthog_jobs.meta.meta import Meta

if TYPE_CHECKING:
    from posthog_jobs.jobs.function import Function


def install(app_id: str = "one", version: int = 1, **hooks: Function) -> Installation:
    if "onEvent" not in hooks:
        hooks.setdefault("on_event", lambda event, meta: None)
    return Installation(
        id=app_id,
        definition=define_app("teapot", "teapot", dict(hooks)),
        config={},
        team_id=1,
        version=version,
    )


def build(installation: Installation) -> Meta:
    unused = cast("Any", None)
    return Meta(
        app_id=installation.id,
        team_id=installation.team_id,
        config=installation.config,
        attachments={},
        global_={},
        cache=unused,
        storage=unused,
        jobs=unused,
        metrics=unused,
        utils=unused,
        geoip=unused,
        posthog=unused,
        logger=unused,
    )
