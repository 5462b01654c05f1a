"""An app's code, checked: its name, the jobs it exports, the hooks it has, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.export_options import FIELDS
from posthog_jobs.apps.manifest import FILE, NO_MANIFEST
from posthog_jobs.errors import AppLoadError, did_you_mean
from posthog_jobs.jobs.function import NAMES, exported_jobs, fits, is_name, signature_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from posthog_jobs.apps.manifest import Manifest
    from posthog_jobs.jobs.function import Function, JobFunction

#: Hook → (PostHog's spelling, what it is called with).
HOOKS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "setup_plugin": ("setupPlugin", ("meta",)),
        "teardown_plugin": ("teardownPlugin", ("meta",)),
        "process_event": ("processEvent", ("event", "meta")),
        "process_event_batch": ("processEventBatch", ("events", "meta")),
        "on_event": ("onEvent", ("event", "meta")),
        "on_snapshot": ("onSnapshot", ("event", "meta")),
        "export_events": ("exportEvents", ("events", "meta")),
        "run_every_minute": ("runEveryMinute", ("meta",)),
        "run_every_hour": ("runEveryHour", ("meta",)),
        "run_every_day": ("runEveryDay", ("meta",)),
    }
)

#: Kind of a metric → the method of `meta.metrics` that records it.
KINDS: Final[Mapping[str, str]] = MappingProxyType({"sum": "increment", "max": "max", "min": "min"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AppDefinition:
    """An app's code, whoever installed it and however often.

    Attributes:
        name: the middle part of its tasks' names, `posthog_jobs.<name>.<job>`.
        source: the module or the path that it was loaded from.
        jobs: job name → function.
        hooks: Python's name of a hook → function.
        manifest: what its `plugin.json` says; empty if it has none.
        metrics: metric name → its kind, `sum`, `max` or `min`.
    """

    name: str
    source: str
    jobs: Mapping[str, JobFunction]
    hooks: Mapping[str, Function]
    manifest: Manifest = NO_MANIFEST
    metrics: Mapping[str, str] = field(default_factory=dict)


def define_app(
    name: str, source: str, namespace: dict[str, Any], manifest: Manifest = NO_MANIFEST
) -> AppDefinition:
    """Return the definition of an app, with all that its module exports checked.

    Args:
        name: the app's name.
        source: what to call the code in messages.
        namespace: the variables of the app's module.
        manifest: what its `plugin.json` says, if it has one.

    Raises:
        AppLoadError: an export is not what it must be; the message names it and the fix.
    """
    app = f"app {name!r} ({source})"
    jobs = exported_jobs(app, namespace)
    hooks = dict(_hooks(app, namespace))
    metrics = dict(_metrics(app, namespace.get("metrics", {})))
    if not jobs and not hooks:
        raise AppLoadError(
            f"{app} exports neither jobs nor hooks, so it is not an app; add `jobs = {{…}}` or a "
            "hook such as process_event(event, meta)"
        )
    for public in manifest.public_jobs:
        if public not in jobs:
            raise AppLoadError(
                f"{app} exports no job {public!r}, which its {FILE} names under 'publicJobs'; "
                f"{did_you_mean(public, jobs)}it exports: {', '.join(jobs) or 'none'}"
            )
    if "export_events" in hooks and manifest.config is not None:
        manifest = replace(manifest, config=manifest.config.having(FIELDS))
    return AppDefinition(
        name=name,
        source=source,
        jobs=MappingProxyType(jobs),
        hooks=MappingProxyType(hooks),
        manifest=manifest,
        metrics=MappingProxyType(metrics),
    )


def _hooks(app: str, namespace: dict[str, Any]) -> Iterator[tuple[str, Function]]:
    for hook, (spelling, parameters) in HOOKS.items():
        found = [name for name in (hook, spelling) if name in namespace]
        if len(found) > 1:
            raise AppLoadError(
                f"{app} has both {hook} and {spelling}, one hook; remove one of them"
            )
        if found:
            function = namespace[found[0]]
            signature = signature_of(app, f"hook {found[0]}", function)
            if not fits(signature, len(parameters)):
                raise AppLoadError(
                    f"{app}: hook {found[0]} takes {signature}; write it as "
                    f"{found[0]}({', '.join(parameters)})"
                )
            yield hook, function


def _metrics(app: str, exported: object) -> Iterator[tuple[str, str]]:
    if isinstance(exported, ModuleType):  # a package's submodule metrics.py, once it is imported
        return
    if not isinstance(exported, Mapping):
        raise AppLoadError(
            f"{app}: `metrics` is of type {type(exported).__name__}; it maps names to kinds, such "
            'as metrics = {"retries": "sum"}'
        )
    for name, written in exported.items():
        if not is_name(name):
            raise AppLoadError(f"{app}: {name!r} is not the name of a metric; use {NAMES}")
        kind = written.lower() if isinstance(written, str) else ""  # in any case, as in PostHog
        if kind not in KINDS:
            raise AppLoadError(
                f"{app}: metric {name!r} is of the kind {written!r}; "
                f"{did_you_mean(kind, KINDS)}the kinds are {', '.join(KINDS)}"
            )
        yield name, kind
