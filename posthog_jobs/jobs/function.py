"""A job as an app writes it: `@job`, what it says of a function, and what that function takes."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeGuard, TypeVar, overload

from posthog_jobs.errors import AppLoadError, PayloadRefusedError, RetryPolicyError, is_number
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.retry import policy_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from posthog_jobs.jobs.retry import Policy, RetryPolicy

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

#: The longest time limit, in seconds: 366 days.
_LONGEST_LIMIT: Final = 366 * 86_400

_NAME: Final = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
#: What a name that is refused might be instead.
NAMES: Final = (
    "up to 200 letters, digits and underscores, neither a digit nor two underscores first"
)

#: On a function: its job's name and the options that `@job` was given.
_MARK: Final = "__posthog_job__"
#: In a module: the name and the function of each `@job` in it.
_MARKED: Final = "__posthog_jobs__"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFunction:
    """One exported job.

    Attributes:
        name: as the app wrote it, camelCase or snake_case.
        function: called as `fn(payload, meta)`, or `fn(meta)` when there is no payload.
        takes_payload: whether `fn(payload, meta)` fits its signature.
        takes_none: whether `fn(meta)` fits its signature.
        default: of the shape `fn(payload=…, meta=…)`, what it takes where there is no payload;
            else ABSENT.
        retry: how often it is run again when it raises `RetryError`.
        time_limit: seconds that a run may take; None: any.
        is_async: whether it is a coroutine function, which this package itself can cancel.
    """

    name: str
    function: Function
    takes_payload: bool
    takes_none: bool
    default: object
    retry: Policy
    time_limit: float | None
    is_async: bool

    def check_payload(self, payload: object, app_id: str) -> None:
        """Refuse the payload of a message that was sent when the function looked otherwise.

        Raises:
            PayloadRefusedError: it does not take the payload any more, or needs one.
        """
        if payload is ABSENT and not self.takes_none:
            raise PayloadRefusedError(
                f"job {self.name!r} of app id {app_id!r} needs a payload now, and was sent with "
                "none; let its payload have a default, and replay"
            )
        if payload is not ABSENT and not self.takes_payload:
            raise PayloadRefusedError(
                f"job {self.name!r} of app id {app_id!r} takes no payload any more, and was sent "
                f"with one; write it as {self.name}(payload, meta), and replay"
            )


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
        setattr(function, _MARK, (job_name, retry, time_limit))
        return function

    return export if function is None else export(function)


def exported_jobs(app: str, namespace: dict[str, Any]) -> dict[str, JobFunction]:
    """Return the jobs that a module exports, by name.

    Args:
        app: what to call the app in messages.
        namespace: the variables of the module. What `@job` noted there is taken out, so that a
            module that is loaded again starts afresh, unless it is refused.

    Raises:
        AppLoadError: one of them is not what it must be; the message names it and the fix.
    """
    jobs: dict[str, JobFunction] = {}
    for name, function in _exported(app, namespace):
        if not is_name(name):
            raise AppLoadError(f"{app}: {name!r} is not a job name; use {NAMES}")
        known = jobs.get(name)
        if known is not None and known.function is not inspect.unwrap(function):
            raise AppLoadError(f"{app} exports two jobs named {name!r}; rename one of them")
        jobs[name] = _job_function(app, name, function)
    namespace.pop(_MARKED, None)
    return jobs


def is_name(name: object) -> TypeGuard[str]:
    """Tell whether a job or a metric can have this name: whether it is of `NAMES`."""
    return isinstance(name, str) and _NAME.match(name) is not None


def signature_of(app: str, what: str, function: object) -> inspect.Signature:
    """Return the signature of what an app exports.

    Raises:
        AppLoadError: it is not a function, or a generator, or of parameters that nobody knows.
    """
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


def fits(signature: inspect.Signature, arguments: int) -> bool:
    """Tell whether a function can be called with so many positional arguments."""
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


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
        if isinstance(mark := inspect.getattr_static(value, _MARK, None), tuple):
            yield mark[0], value


def _job_function(app: str, name: str, function: Function) -> JobFunction:
    what = f"job {name!r}"
    signature = signature_of(app, what, function)
    takes_payload, takes_none = fits(signature, 2), fits(signature, 1)
    if not takes_payload and not takes_none:
        raise AppLoadError(
            f"{app}: {what} takes {signature}; write it as {name}(payload, meta), or as "
            f"{name}(meta) if it has no payload"
        )
    first, second = (*signature.parameters.values(), None, None)[:2]
    default: object = ABSENT
    if first and second and second.name == "meta" and first.default is not first.empty:
        default = first.default if second.kind is second.POSITIONAL_OR_KEYWORD else ABSENT
    _, retry, time_limit = getattr(function, _MARK, (name, None, None))
    if time_limit is not None and not (is_number(time_limit, 0, _LONGEST_LIMIT) and time_limit):
        raise AppLoadError(
            f"{app}: {what} has time_limit={time_limit!r:.60}; use seconds above 0, up to "
            f"{_LONGEST_LIMIT:,} (366 days), or leave it out"
        )
    try:
        policy = policy_of(retry)
    except RetryPolicyError as error:
        raise AppLoadError(f"{app}: {what}: its retry {error}") from None
    return JobFunction(
        name=name,
        function=function,
        takes_payload=takes_payload,
        takes_none=takes_none,
        default=default,
        retry=policy,
        time_limit=time_limit,
        is_async=_is_async(function),
    )


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # an object's own, which may be async
    )
