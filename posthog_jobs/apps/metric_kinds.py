"""The metrics that an app declares: `metrics = {"retries": "sum"}`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import AppLoadError, did_you_mean

if TYPE_CHECKING:
    import re

#: Kind of a metric → the method of `meta.metrics` that records it.
KINDS: Final[Mapping[str, str]] = MappingProxyType({"sum": "increment", "max": "max", "min": "min"})


def check_metrics(app: str, exported: object, names: re.Pattern[str]) -> Mapping[str, str]:
    """Check what a module exports as `metrics`.

    Args:
        app: what to call the app in messages.
        exported: a mapping of name → kind, in any case, as PostHog takes it.
        names: what a name has to match.

    Returns:
        Name → kind.

    Raises:
        AppLoadError: a name or a kind is none.
    """
    if isinstance(exported, ModuleType):  # a package's submodule metrics.py, once it is imported
        exported = {}
    if not isinstance(exported, Mapping):
        raise AppLoadError(
            f"{app}: `metrics` is of type {type(exported).__name__}; it maps names to kinds, such "
            'as metrics = {"retries": "sum"}'
        )
    metrics: dict[str, str] = {}
    for name, written in exported.items():
        if not isinstance(name, str) or not names.match(name) or name.startswith("__"):
            raise AppLoadError(
                f"{app}: {name!r} is no name of a metric; use up to 200 letters, digits and "
                "underscores, neither a digit nor two underscores first"
            )
        kind = written.lower() if isinstance(written, str) else ""
        if kind not in KINDS:
            raise AppLoadError(
                f"{app}: metric {name!r} is of the kind {written!r}; "
                f"{did_you_mean(kind, KINDS)}the kinds are {', '.join(KINDS)}"
            )
        metrics[name] = kind
    return MappingProxyType(metrics)
