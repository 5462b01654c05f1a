from __future__ import annotations

from typing import Any

import pytest

from posthog_jobs.apps.manifest import PublicJob
from posthog_jobs.errors import JobCallError


def public(**fields: dict[str, Any]) -> PublicJob:
    return PublicJob.parse("go", {"payload": fields}, "it")


VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "string": (["a"], [5, True, ["a"]]),
    "boolean": ([True, False], [1, "true"]),
    "number": ([0, 1.5, -3], [True, "5", float("nan"), float("inf")]),
    "json": ([0, "a", {"b": [1]}, [], False], []),
    "date": (
        ["2030-01-31", "2030-01-31T12:00:00.000Z", "2030-01-31T12:00+02:00"],
        ["tomorrow", "2030-02-30", 5, ["2030-01-31"]],
    ),
    "daterange": (
        [["2030-01-01", "2030-01-01"], ["2030-01-01", "2030-01-02T00:00Z"]],
        [["2030-01-02", "2030-01-01"], ["2030-01-01"], "2030-01-01", ["a", "b"], [1, 2]],
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_types(kind: str) -> None:
    """Each type takes its values as they are, and refuses others by the field's name."""
    job = public(x={"type": kind})
    good, bad = VALUES[kind]

    for value in good:
        assert job.check({"x": value}) == {"x": value}
    for value in bad:
        with pytest.raises(JobCallError, match=r"payload of job 'go': 'x' is of type .*; make it"):
            job.check({"x": value})


def test_defaults() -> None:
    """What is not given, or null, has its default; one without a default stays away."""
    job = public(
        a={"type": "number", "default": 5}, b={"type": "string"}, c={"type": "json", "default": []}
    )

    assert job.check({"c": None}) == {"a": 5, "c": []}
    job.check({})["c"].append(1)
    assert job.check({"a": 0, "b": ""}) == {"a": 0, "b": "", "c": []}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, r"lacks the required field 'since'; add it: a date or time in ISO 8601"),
        ({"since": ""}, r"lacks the required field 'since'"),
        (
            {"sinc": "2030-01-01"},
            r"has the unknown field 'sinc'; did you mean 'since'\? its fields are",
        ),
        ([], r"is of type list; make it an object with the fields since"),
        (None, r"is of type NoneType; make it an object"),
    ],
)
def test_payloads_that_are_wrong(payload: object, message: str) -> None:
    """A wrong payload is refused, with the job, the field and the fix."""
    job = public(since={"type": "date", "required": True, "title": "Since", "staff_only": True})

    with pytest.raises(JobCallError, match=f"^the payload of job 'go' {message}"):
        job.check(payload)


@pytest.mark.parametrize("declared", [{}, {"payload": None}])
def test_a_payload_that_is_not_declared(declared: dict[str, Any]) -> None:
    """A job that declares no payload takes any."""
    assert PublicJob.parse("go", declared, "it").check([1]) == [1]
