"""An app's code, checked: its name, the jobs it exports and the hooks it has."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from posthog_jobs.apps.export_options import FIELDS
from posthog_jobs.apps.manifest import FILE, NO_MANIFEST
from posthog_jobs.apps.metric_kinds import check_metrics
from posthog_jobs.errors import AppLoadError, did_you_mean
from posthog_jobs.jobs.job_options import checked_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from posthog_jobs.apps.manifest import Manifest
    from posthog_jobs.jobs.retry import Policy, RetryPolicy

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

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

_JOB_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
_MARK: Final = "__posthog_job__"
_MARKED: Final = "__posthog_jobs__"
_OPTIONS: Final = "__posthog_job_options__"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFunction:
    """One exported job.

    Attributes:
        name: as the app wrote it, camelCase or snake_case.
        function: called as `fn(payload, meta)`, or `fn(meta)` when there is no payload.
        takes_payload: whether `fn(payload, meta)` fits its signature.
        takes_none: whether `fn(meta)` fits its signature.
        optional_payload: whether it is of the shape `fn(payload=…, meta=…)`, so that without
            a payload `meta` has to go by its name.
        retry: how often it is run again when it raises `RetryError`.
        time_limit: seconds that a run may take; None: any.
        is_async: whether it is a coroutine function, which this package itself can cancel.
    """

    name: str
    function: Function
    takes_payload: bool
    takes_none: bool
    optional_payload: bool
    retry: Policy
    time_limit: float | None
    is_async: bool


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


@overload
def job(function: F, /) -> F: ...
@overload
def job(
    *,
    name: str | None = None,
    retry: RetryPolicy | Sequence[float] | int | None = None,
    time_limit: float | None = None,
) -> Callable[[F], F]: ...
def job(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    retry: object = None,
    time_limit: object = None,
) -> Function | Callable[[Function], Function]:
    """Export a function as a job, as naming it in the app's `jobs` mapping does.

    Args:
        function: the job, `fn(payload, meta)` or `fn(meta)`, sync or async.
        name: its name if that is not the function's.
        retry: what becomes of it when it raises `RetryError`: how often it is run again, after
            5, 10, 20, 40 … s; a list of delays, in seconds; a `RetryPolicy`; or False for not
            at all. Without it: 5 times.
        time_limit: seconds that a run may take. An async one is then cancelled; for a sync one
            the pool's child is replaced, which only the pool `prefork` can.

    Both are checked when the app is loaded.

    Returns:
        The function, unchanged.
    """
    # the module that the decorator stands in, which for a wrapped function is not the function's
    namespace = sys._getframe(1).f_globals  # noqa: SLF001

    def export(function: Function) -> Function:
        job_name = name or getattr(function, "__name__", None)
        if job_name is None:
            raise AppLoadError(f"{function!r} has no name of its own; write @job(name='…')")
        namespace.setdefault(_MARKED, []).append((job_name, function))
        setattr(function, _MARK, job_name)
        setattr(function, _OPTIONS, {"retry": retry, "time_limit": time_limit})
        return function

    return export if function is None else export(function)


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
    jobs: dict[str, JobFunction] = {}
    for exported_name, function in _exported(app, namespace):
        job_name = _job_name(app, exported_name)
        known = jobs.get(job_name)
        if known is not None and known.function is not inspect.unwrap(function):
            raise AppLoadError(f"{app} exports two jobs named {job_name!r}; rename one of them")
        jobs[job_name] = _job_function(app, job_name, function)
    hooks = dict(_hooks(app, namespace))
    metrics = check_metrics(app, namespace.get("metrics", {}), _JOB_NAME)
    if not jobs and not hooks:
        raise AppLoadError(
            f"{app} exports neither jobs nor hooks, so it is no app; add `jobs = {{…}}` or a hook "
            f"such as process_event(event, meta)"
        )
    for public in manifest.public_jobs:
        if public not in jobs:
            raise AppLoadError(
                f"{app} exports no job {public!r}, which its {FILE} names under 'publicJobs'; "
                f"{did_you_mean(public, jobs)}it exports: {', '.join(jobs) or 'none'}"
            )
    if "export_events" in hooks and manifest.config is not None:
        manifest = replace(manifest, config=manifest.config.having(FIELDS))
    # taken out, so that a module that is loaded again starts afresh; kept until here, so that
    # one that is refused is refused again
    namespace.pop(_MARKED, None)
    return AppDefinition(
        name=name,
        source=source,
        jobs=MappingProxyType(jobs),
        hooks=MappingProxyType(hooks),
        manifest=manifest,
        metrics=metrics,
    )


def _exported(app: str, namespace: dict[str, Any]) -> Iterator[tuple[object, Function]]:
    exported = namespace.get("jobs", {})
    if isinstance(exported, ModuleType):  # a package's submodule jobs.py, once it is imported
        exported = {}
    if not isinstance(exported, Mapping):
        raise AppLoadError(
            f"{app}: `jobs` is of type {type(exported).__name__}; it maps names to functions, "
            "such as jobs = {'retryRequest': retry_request}"
        )
    yield from exported.items()
    yield from namespace.get(_MARKED, ())
    for value in list(namespace.values()):
        # static, since a lazy proxy in the module may raise at any access
        if isinstance(mark := inspect.getattr_static(value, _MARK, None), str):
            yield mark, value


def _job_name(app: str, name: object) -> str:
    if not isinstance(name, str) or not _JOB_NAME.match(name):
        raise AppLoadError(
            f"{app}: {name!r} is no job name; use up to 200 letters, digits and underscores, and "
            "no digit first"
        )
    if name.startswith("__"):
        raise AppLoadError(f"{app}: {name!r} is no job name; Python keeps names with __ to itself")
    return name


def _job_function(app: str, name: str, function: Function) -> JobFunction:
    signature = _signature(app, f"job {name!r}", function)
    takes_payload, takes_none = _fits(signature, 2), _fits(signature, 1)
    if not takes_payload and not takes_none:
        raise AppLoadError(
            f"{app}: job {name!r} takes {signature}; write it as {name}(payload, meta), or as "
            f"{name}(meta) if it has no payload"
        )
    first, second = (*signature.parameters.values(), None, None)[:2]
    optional_payload = (
        first is not None
        and second is not None
        and first.default is not first.empty
        and second.name == "meta"
        and second.kind is second.POSITIONAL_OR_KEYWORD
    )
    options = checked_options(f"{app}: job {name!r}", **getattr(function, _OPTIONS, {}))
    return JobFunction(
        name=name,
        function=function,
        takes_payload=takes_payload,
        takes_none=takes_none,
        optional_payload=optional_payload,
        is_async=_is_async(function),
        retry=options.retry,
        time_limit=options.time_limit,
    )


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # an object's own, which may be async
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
            signature = _signature(app, f"hook {found[0]}", function)
            if not _fits(signature, len(parameters)):
                raise AppLoadError(
                    f"{app}: hook {found[0]} takes {signature}; write it as "
                    f"{found[0]}({', '.join(parameters)})"
                )
            yield hook, function


def _signature(app: str, what: str, function: object) -> inspect.Signature:
    if not callable(function) or isinstance(function, type):
        raise AppLoadError(
            f"{app}: {what} is of type {type(function).__name__}, not a function; export a function"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise AppLoadError(
            f"{app}: {what} has a yield in it, so that calling it would run none of it; use return"
        )
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        raise AppLoadError(
            f"{app}: {what} is {function!r}, whose parameters Python cannot tell; wrap it in a def"
        ) from None


def _fits(signature: inspect.Signature, arguments: int) -> bool:
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True
