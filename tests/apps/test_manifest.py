from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthog_jobs.apps.loading import load_app
from posthog_jobs.apps.manifest import NO_MANIFEST, Manifest, PublicJob
from posthog_jobs.errors import AppLoadError, JobCallError

if TYPE_CHECKING:
    from pathlib import Path

JOB = "def a(meta): ...\njobs = {'a': a}\n"

#: As PostHog's own apps have it, with keys that only PostHog's pages use.
REAL = {
    "name": "Exporter",
    "url": "https://example.com",
    "description": "Exports events",
    "main": "index.py",
    "posthogVersion": ">= 1.25.0",
    "stateless": True,
    "logo": "logo.png",
    "config": [
        {"markdown": "Where [to](http://example.com) send events"},
        {"key": "stage", "name": "Stage", "type": "choice", "choices": ["S3", "GCS"]},
        {
            "key": "bucket",
            "hint": "Ask around",
            "default": "",
            "order": 3,
            "required_if": [["stage", "S3"]],
            "visible_if": [["stage", "S3"]],
            "site": True,
        },
        {"key": "key", "type": "attachment", "required": True, "secret": True},
        {"key": "map", "type": "json", "default": '{"a": 1}', "description": "A map"},
    ],
    "publicJobs": {"Restart": {}, "Export": {"payload": {"from": {"type": "date"}}}},
}


def folder(path: Path, manifest: object, code: str = JOB, file: str = "__init__.py") -> Path:
    path.mkdir(exist_ok=True)
    (path / file).write_text(code)
    (path / "plugin.json").write_text(json.dumps(manifest))
    return path


def test_a_file_as_posthog_has_it() -> None:
    """What PostHog's own apps have in their plugin.json is read."""
    manifest = Manifest.parse(REAL)

    assert (manifest.name, manifest.main) == ("Exporter", "index.py")
    assert manifest.config is not None
    assert list(manifest.config.fields) == ["stage", "bucket", "key", "map"]
    assert manifest.config.fields["bucket"].type == "string"
    assert manifest.config.fields["map"].default == {"a": 1}
    assert list(manifest.public_jobs) == ["Restart", "Export"]


def test_config_as_a_mapping() -> None:
    """Fields may be keyed by their key, texts between them too."""
    manifest = Manifest.parse(
        {"config": {"intro": {"markdown": "Hi"}, "url": {"required": True}, "b": {"key": "c"}}}
    )

    assert manifest.config is not None
    assert list(manifest.config.fields) == ["url", "c"]


def test_a_key_that_is_there_twice() -> None:
    """Of two fields of one key the last one counts, as in PostHog."""
    manifest = Manifest.parse({"config": [{"key": "a"}, {"key": "a", "secret": True}]})

    assert manifest.schema.mask({"a": "x"}) == {"a": "********"}


@pytest.mark.parametrize("declared", [{}, {"config": None, "publicJobs": None, "name": None}])
def test_a_file_that_says_little(declared: dict[str, Any]) -> None:
    """What is left out, or null, is as without the file; then any config goes."""
    manifest = Manifest.parse(declared)

    assert manifest == NO_MANIFEST
    assert manifest.config is None
    assert manifest.schema.check({"any": 1}) == {"any": 1}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ([], r"plugin\.json is not a JSON object; write"),
        ({"main": 5}, r"plugin\.json: 'main' is of type int; make it a string"),
        ({"config": "a"}, r"'config' is of type str; make it a list of fields"),
        ({"config": ["a"]}, r"config\[0\] is of type str; make it a field, such as"),
        ({"config": {"a": 1}}, r"config\['a'\] is of type int; make it a field"),
        ({"config": [{"name": "a"}]}, r"config\[0\] has no key that is a text; add \"key\""),
        ({"config": [{"key": 5}]}, r"config\[0\] has no key that is a text"),
        (
            {"config": [{"key": "a", "requird": True}]},
            r"field 'a' has the unknown key 'requird'; did you mean 'required'\? the keys are key,",
        ),
        (
            {"config": [{"key": "a", "required": "yes"}]},
            r"field 'a': 'required' is of type str; make it true or false",
        ),
        (
            {"config": [{"key": "a", "type": "strin"}]},
            r"field 'a' has the type 'strin'; did you mean 'string'\? the types are string, json",
        ),
        ({"config": [{"key": "a", "type": ["b"]}]}, r"'type' is of type list; make it a string"),
        (
            {"config": [{"key": "a", "type": "choice"}]},
            r"field 'a' is a choice without choices; add",
        ),
        (
            {"config": [{"key": "a", "type": "choice", "choices": ["x", 1]}]},
            r"field 'a' is a choice without choices; add .* strings alone",
        ),
        (
            {"config": [{"key": "a", "type": "choice", "choices": ["x"], "secret": True}]},
            r"field 'a' is a secret choice, .*; remove 'secret'",
        ),
        (
            {"config": [{"key": "a", "type": "choice", "choices": ["Yes"], "default": "yes"}]},
            r"field 'a': the default is not one of its choices; did you mean 'Yes'\?",
        ),
        ({"config": [{"key": "a", "default": 30}]}, r"'a': the default is of type int; make it a"),
        (
            {"config": [{"key": "a", "type": "json", "default": "{"}]},
            r"'a': the default is a string, but not JSON",
        ),
        (
            {"config": [{"key": "a", "required_if": [["b", "c"]]}]},
            r"field 'a' depends on 'b', which is not a field; the fields are a",
        ),
        (
            {"config": [{"key": "a", "visible_if": ["b"]}]},
            r"field 'a': 'visible_if' is not a list of conditions; write",
        ),
        (
            {"config": [{"key": "a", "required_if": [["a", "<", "c"]]}]},
            r"field 'a': 'required_if' is not a list of conditions",
        ),
        ({"publicJobs": ["a"]}, r"'publicJobs' is of type list; make it an object"),
        ({"publicJobs": {"a": 1}}, r"public job 'a' is of type int; make it an object"),
        (
            {"publicJobs": {"a": {"playload": {}}}},
            r"job 'a' has the unknown key 'playload'; did you mean 'payload'\?",
        ),
        (
            {"publicJobs": {"a": {"payload": {"b": "date"}}}},
            r"public job 'a': payload field 'b' is of type str; make it an object with any",
        ),
        (
            {"publicJobs": {"a": {"payload": {"\ud800": {}}}}},
            r"public job 'a': payload field '.ud800' has no text as its key; rename it",
        ),
        (
            {"publicJobs": {"a": {"payload": {"b": {}}}}},
            r"field 'b' has the type None; the types are string, boolean",
        ),
        (
            {"publicJobs": {"a": {"payload": {"b": {"type": "number", "default": "5"}}}}},
            r"field 'b': the default is not a number, such as 5; mend it",
        ),
    ],
)
def test_wrong_shapes(declared: object, message: str) -> None:
    """A plugin.json of a wrong shape is refused, with the file, the field and the fix."""
    with pytest.raises(AppLoadError, match=message) as caught:
        Manifest.parse(declared)
    assert str(caught.value).startswith("plugin.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3)
            | st.sampled_from(["key", "type", "default", "choices", "required_if", "payload"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {"key": st.sampled_from("ab") | VALUES},
    optional={
        "type": st.sampled_from(["string", "json", "attachment", "choice"]) | VALUES,
        "default": VALUES,
        "choices": st.lists(st.text(max_size=3)) | VALUES,
        "required_if": st.lists(st.tuples(st.sampled_from("ab"), VALUES).map(list)) | VALUES,
        "secret": st.booleans() | VALUES,
        "markdown": VALUES,
    },
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "name": VALUES,
        "config": st.lists(FIELDS | VALUES, max_size=3) | VALUES,
        "publicJobs": st.dictionaries(
            st.text(max_size=3),
            st.fixed_dictionaries(
                {
                    "payload": st.dictionaries(
                        st.text(max_size=3),
                        st.fixed_dictionaries({"type": st.just("daterange"), "default": VALUES})
                        | VALUES,
                    )
                }
            )
            | VALUES,
            max_size=2,
        )
        | VALUES,
    },
)


@given(declared=FILES | VALUES, config=st.dictionaries(st.sampled_from("abc"), VALUES))
def test_any_shape_at_all(declared: object, config: dict[str, Any]) -> None:
    """Whatever a plugin.json holds, it is read, or refused with a message that can be printed."""
    try:
        manifest = Manifest.parse(declared)
    except AppLoadError as error:
        assert str(error).startswith("plugin.json")  # noqa: PT017  # most are refused
        str(error).encode()
        return
    manifest.schema.mask(config)
    manifest.schema.secrets(config)


def test_the_app_of_a_folder(tmp_path: Path) -> None:
    """An app has what its plugin.json says; one without the file has an empty manifest."""
    definition = load_app(str(folder(tmp_path / "app", {"config": [{"key": "k"}]})))
    (tmp_path / "bare.py").write_text(JOB)

    assert list(definition.manifest.schema.fields) == ["k"]
    assert load_app(str(tmp_path / "bare.py")).manifest is NO_MANIFEST


def test_a_module_that_main_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module finds the plugin.json beside it whose `main` names it, by its name and its path."""
    folder(tmp_path / "manifest_pkg", {"name": "Hooks", "main": "hooks.py"}, JOB, "hooks.py")
    (tmp_path / "manifest_pkg/__init__.py").write_text("")
    (tmp_path / "manifest_pkg/other.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)

    for source in ("manifest_pkg.hooks", str(tmp_path / "manifest_pkg/hooks.py")):
        assert load_app(source).name == "Hooks"
        assert load_app(source).manifest.main == "hooks.py"
    assert load_app("manifest_pkg.other").manifest is NO_MANIFEST


@pytest.mark.parametrize("manifest", [[], {}, {"main": 5}, {"main": "a\0b"}, {"config": 5}])
def test_a_file_that_is_somebody_elses(tmp_path: Path, manifest: object) -> None:
    """A plugin.json whose `main` is not the module is not read for it."""
    folder(tmp_path / "app", manifest, JOB, "hooks.py")

    assert load_app(str(tmp_path / "app/hooks.py")).manifest is NO_MANIFEST


def test_a_ported_app(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where `main` is still JavaScript, one is told to name the Python file."""
    app = folder(tmp_path / "app", {"main": "index.js", "config": []}, JOB, "hooks.py")

    with pytest.raises(AppLoadError, match=r"index\.js' is not a Python file; port the app, and"):
        load_app(str(app))
    with caplog.at_level(logging.WARNING):
        load_app(str(app / "hooks.py"))
    assert "'index.js'; if it is this app's, make that 'hooks.py'" in caplog.text


def test_a_file_nested_too_deep(tmp_path: Path) -> None:
    """A plugin.json that nests deeper than Python can read is refused as one."""
    app = folder(tmp_path / "app", {})
    (app / "plugin.json").write_text("[" * 200_000)

    with pytest.raises(AppLoadError, match=r"plugin\.json cannot be read as JSON"):
        load_app(str(app))


def test_a_public_job_that_is_not_exported(tmp_path: Path) -> None:
    """A public job that the app does not export is refused, with a close one."""
    with pytest.raises(AppLoadError, match=r"no job 'retryRequests'.*did you mean 'retryRequest'"):
        load_app(
            str(
                folder(
                    tmp_path / "app",
                    {"publicJobs": {"retryRequests": {}}},
                    "jobs = {'retryRequest': lambda meta: None}",
                )
            )
        )


def public(**fields: dict[str, Any]) -> PublicJob:
    return PublicJob.parse("go", {"payload": fields}, "it")


PAYLOADS: dict[str, tuple[list[Any], list[Any]]] = {
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


@pytest.mark.parametrize("kind", PAYLOADS)
def test_types_of_payloads(kind: str) -> None:
    """Each type takes its values as they are, and refuses others by the field's name."""
    job = public(x={"type": kind})
    good, bad = PAYLOADS[kind]

    for value in good:
        assert job.check({"x": value}) == {"x": value}
    for value in bad:
        with pytest.raises(JobCallError, match=r"payload of job 'go': 'x' is of type .*; make it"):
            job.check({"x": value})


def test_defaults_of_payloads() -> None:
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
