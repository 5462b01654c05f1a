"""What exports a job, and what is told of its function."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, cast

import pytest

from posthog_jobs import RetryPolicy, job
from posthog_jobs.apps.definition import define_app
from posthog_jobs.errors import AppLoadError
from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.jobs.retry import NEVER, ON_RETRY_ERROR, RetryDelays

if TYPE_CHECKING:
    from posthog_jobs.apps.definition import AppDefinition

APP = r"^app 'teapot' \(myapps\.teapot\)"


def with_payload(payload: Any, meta: Any) -> None: ...
def without_payload(meta: Any) -> None: ...
async def with_async(payload: Any, meta: Any) -> None: ...


def define(**namespace: Any) -> AppDefinition:
    return define_app("teapot", "myapps.teapot", namespace)


def run_module(code: str) -> dict[str, Any]:
    # a module of its own: @job looks at the variables of the module that it stands in
    namespace: dict[str, Any] = {"job": job, "functools": functools}
    exec(code, namespace)
    return namespace


@pytest.mark.parametrize("name", ["retryRequest", "retry_request", "Retry", "x", "_x", "X9_" * 66])
def test_names_are_kept_as_written(name: str) -> None:
    """Export: names may be camelCase or snake_case, and are kept as written."""
    definition = define(jobs={name: with_payload})

    assert list(definition.jobs) == [name]
    assert definition.jobs[name].name == name
    assert definition.jobs[name].function is with_payload


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a-b", "a.b", "9a", "a\n", "é", "a:b", "x" * 201, "__init__", "__x", 5, None],
)
def test_names_that_no_task_can_have(name: Any) -> None:
    """Export: a name that a task or Python cannot have is refused, with the app and the name."""
    with pytest.raises(AppLoadError, match=APP) as caught:
        define(jobs={name: with_payload})
    assert f"{name!r} is not a job name; use up to " in str(caught.value)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("@job\ndef a(payload, meta): ...", {"a"}),
        ("@job()\ndef a(meta): ...", {"a"}),
        ("@job(name='retryRequest')\ndef a(payload, meta): ...", {"retryRequest"}),
        ("@job\nasync def a(payload, meta): ...", {"a"}),
        ("@job(name='b')\n@job\ndef a(meta): ...", {"a", "b"}),
        ("@job\ndef a(meta): ...\nb = a", {"a"}),
        ("@job\ndef a(meta): ...\njobs = {'a': a}", {"a"}),
        ("@job\ndef a(meta): ...\njobs = {'b': a}", {"a", "b"}),
        ("@job\ndef a(meta): ...\ndel a", {"a"}),
        ("@job(name='a')\ndef _(meta): ...\n@job(name='b')\ndef _(meta): ...", {"a", "b"}),
        ("job(name='p')(functools.partial(lambda x, meta: 0, 1))", {"p"}),
        ("class C:\n  def run(self, meta): ...\njobs = {'a': C().run}", {"a"}),
        ("class C:\n  def __call__(self, meta): ...\njobs = {'a': C()}", {"a"}),
    ],
)
def test_what_exports_a_job(code: str, names: set[str]) -> None:
    """Export: `@job`, `@job(name=…)` and `jobs = {…}` build one and the same mapping."""
    assert set(define(**run_module(code)).jobs) == names


def test_an_imported_job_is_exported() -> None:
    """Export: a job that is written in one module is exported by an app that imports it."""
    shared = run_module("@job(name='shared')\ndef a(meta): ...")

    assert set(define(a=shared["a"]).jobs) == {"shared"}


@pytest.mark.parametrize(
    "code",
    [
        "@job\ndef a(meta): ...\n@job\ndef a(meta): ...",
        "@job\ndef a(meta): ...\njobs = {'a': lambda meta: None}",
        "@job(name='a')\ndef b(meta): ...\n@job(name='a')\ndef c(meta): ...",
    ],
)
def test_two_jobs_of_one_name(code: str) -> None:
    """Export: two functions under one name are refused, and again when they are read again."""
    namespace = run_module(code)
    for _ in range(2):
        with pytest.raises(AppLoadError, match=APP + r" exports two jobs named 'a'; rename"):
            define_app("teapot", "myapps.teapot", namespace)


def test_a_module_that_is_reloaded_starts_afresh() -> None:
    """Export: jobs of a module's former code are neither kept nor in the way of the new ones."""
    code = "@job\ndef a(meta): ...\n@job(name='b')\ndef _(meta): ...\ndel _"
    namespace = run_module(code)
    define_app("teapot", "myapps.teapot", namespace)

    exec("@job\ndef a(meta): ...", namespace)

    assert set(define_app("teapot", "myapps.teapot", namespace).jobs) == {"a"}


def test_a_function_without_a_name() -> None:
    """Export: `@job` on what has no name of its own asks for one."""
    with pytest.raises(AppLoadError, match=r"no name of its own; write @job\(name='…'\)"):
        job(functools.partial(with_payload, 1))


@pytest.mark.parametrize(
    ("function", "payload", "none", "default"),
    [
        (with_payload, True, False, ABSENT),
        (without_payload, False, True, ABSENT),
        (with_async, True, False, ABSENT),
        (lambda payload=None, meta=None: None, True, True, None),
        (lambda *args: None, True, True, ABSENT),
        (lambda payload, meta, *, extra=1: None, True, False, ABSENT),
        (functools.partial(lambda extra, meta: None, 1), False, True, ABSENT),
    ],
)
def test_what_a_signature_takes(
    function: Any, *, payload: bool, none: bool, default: object
) -> None:
    """Arguments: the signature tells whether a job takes a payload, none, or either."""
    defined = define(jobs={"x": function}).jobs["x"]

    assert (defined.takes_payload, defined.takes_none) == (payload, none)
    assert defined.default is default


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, r"job 'x' takes \(\); write it as x\(payload, meta\)"),
        (lambda payload, more, meta: None, r"takes \(payload, more, meta\); write"),
        (lambda *, payload, meta: None, r"takes \(\*, payload, meta\); write"),
        (lambda payload=None, *, meta: None, r"takes \(payload=None, \*, meta\); write"),
        (None, "is of type NoneType, not a function; export a function"),
        ("retry", "is of type str, not a function"),
        (dict, "is of type type, not a function"),
        (min, "parameters Python cannot tell; wrap it in a def"),
    ],
)
def test_functions_that_no_call_fits(function: Any, message: str) -> None:
    """Export: what cannot be called as a job is refused, with app, job, signature and fix."""
    with pytest.raises(AppLoadError, match=rf"{APP}: job 'x' .*") as caught:
        define(jobs={"x": function})
    assert caught.match(message)


@pytest.mark.parametrize("jobs", [[with_payload], None, "x", {with_payload}, with_payload])
def test_jobs_is_a_mapping(jobs: Any) -> None:
    """Export: a `jobs` that maps nothing is refused, with its type and an example."""
    with pytest.raises(AppLoadError, match=rf"{APP}: `jobs` is of type {type(jobs).__name__}; it"):
        define(jobs=jobs)


OPTIONS = """
@job(retry=3, time_limit=30)
def few(meta): ...
@job(retry=[5, 60.5, 3600])
async def delays(meta): ...
@job(retry=False, time_limit=0.5)
def none(meta): ...
@job(retry=policy)
def policed(meta): ...
@job
def plain(meta): ...
def mapped(meta): ...
@job(retry=1)
def named(meta): ...
jobs = {"mapped": mapped, "renamed": named}
"""


def test_what_the_decorator_says_of_a_job() -> None:
    """Export: `@job` sets a job's retries and its time limit; without it they are the usual."""
    policy = RetryPolicy(first=1, retries=None, longest=9)
    namespace: dict[str, Any] = {"job": job, "policy": policy}
    exec(OPTIONS, namespace)
    defined = define(**namespace).jobs

    assert {name: each.retry for name, each in defined.items()} == {
        "few": RetryPolicy(first=5, retries=3),
        "delays": RetryDelays((5, 60.5, 3600)),
        "none": NEVER,
        "policed": policy,
        "plain": ON_RETRY_ERROR,
        "mapped": ON_RETRY_ERROR,
        "named": RetryPolicy(first=5, retries=1),
        "renamed": RetryPolicy(first=5, retries=1),
    }
    limits = {name: each.time_limit for name, each in defined.items() if each.time_limit}
    assert limits == {"few": 30, "none": 0.5}
    assert [name for name, each in defined.items() if each.is_async] == ["delays"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry": -1}, "its retry has -1 retries; use a whole number, 0 or more"),
        ({"retry": "often"}, "its retry is 'often'; use a number of retries, a list of delays"),
        ({"retry": 1.5}, "its retry is 1.5; use a number of retries"),
        ({"retry": [5, -1]}, "its retry has a delay of -1; use seconds, from 0 to 31,622,400"),
        ({"retry": [True]}, "its retry has a delay of True; use seconds"),
        ({"retry": [float("nan")]}, "its retry has a delay of nan; use seconds"),
        ({"retry": RetryPolicy(first=math.inf)}, "its retry has first of inf; use seconds"),
        ({"retry": RetryPolicy(longest=cast("Any", None))}, "its retry has longest of None"),
        ({"retry": RetryPolicy(retries=cast("Any", "3"))}, "its retry has '3' retries"),
        ({"time_limit": 0}, "has time_limit=0; use seconds above 0, up to 31,622,400"),
        ({"time_limit": "30"}, "has time_limit='30'; use seconds"),
        ({"time_limit": True}, "has time_limit=True; use seconds"),
        ({"time_limit": math.nan}, "has time_limit=nan; use seconds"),
        ({"time_limit": math.inf}, "has time_limit=inf; use seconds"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Bad input: a wrong retry or time limit is refused at load, with app, job and fix."""

    @job(name="retryRequest", **options)
    def function(meta: Any) -> None: ...

    with pytest.raises(AppLoadError, match=rf"{APP}: job 'retryRequest'") as raised:
        define(function=function)
    assert message in str(raised.value)
