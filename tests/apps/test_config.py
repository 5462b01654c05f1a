from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthog_jobs.apps.attachment import MAX_ATTACHMENT_BYTES, Attachment
from posthog_jobs.apps.config import OPEN, ConfigSchema
from posthog_jobs.errors import AppConfigError
from posthog_jobs.redaction import MASK

FILE: dict[str, Any] = {
    "content_type": "application/json",
    "file_name": "key.json",
    "contents": b"{\xff}",
}
STORED: dict[str, Any] = {**FILE, "contents": base64.b64encode(b"{\xff}").decode()}


def schema(*fields: dict[str, Any]) -> ConfigSchema:
    return ConfigSchema.parse(list(fields), "plugin.json")


def test_defaults() -> None:
    """What is not given, or None, has its default; one without a default stays away."""
    checks = schema({"key": "a", "default": "x"}, {"key": "b"}, {"key": "c", "default": "y"})

    assert checks.check({"c": "z", "a": None}) == {"a": "x", "c": "z"}
    assert checks.check({"a": ""}) == {"a": "", "c": "y"}, "emptied on purpose"


def test_empty_defaults() -> None:
    """A text whose default is empty is there, and empty; what an empty text is no value of, not."""
    file = {"key": "file", "type": "attachment", "default": ""}
    choice = {"key": "mode", "type": "choice", "choices": ["on"], "default": ""}
    checks = schema({"key": "names", "default": ""}, file, choice)

    assert checks.check({}) == {"names": ""}
    with pytest.raises(AppConfigError, match="'names' is required"):
        schema({"key": "names", "default": "", "required": True}).check({})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ({}, 30, r"'f' is of type int; make it a string, such as \"30\""),
        ({}, True, r"'f' is of type bool; make it a string"),
        ({"required": True, "name": "The F"}, "", r"'f' \('The F'\) is required; set it"),
        ({"required": True, "default": "x"}, "", r"'f' is required; set it"),
        ({"required": True}, None, r"'f' is required"),
        (
            {"type": "choice", "choices": ["Yes", "No"]},
            "yes",
            r"'f' is not one of its choices; did you mean 'Yes'\? use one of 'Yes', 'No'",
        ),
        ({"type": "choice", "choices": ["1"]}, 1, r"'f' is of type int; make it a string"),
        ({"type": "json"}, "{a", r"'f' is a string, but not JSON"),
        ({"type": "json"}, '"a"', r"'f' is JSON of a mere string"),
        ({"type": "json"}, {"a": {1}}, r"'f'\['a'\] is of type set, which cannot travel"),
        ({"type": "json"}, {"a": b""}, r"'f' is not JSON: .*bytes"),
        ({"type": "json"}, "[" * 100_000, r"'f' is a string, but not JSON"),
        ({"type": "attachment"}, "x", r"'f' is not an attachment; give it as a mapping with just"),
        ({"type": "attachment"}, {"contents": b""}, r"'f' is not an attachment"),
        ({"type": "attachment"}, {**FILE, "file_name": 5}, r"'f': 'file_name' is not a text"),
        ({"type": "attachment"}, {**FILE, "contents": "é"}, r"'f': 'contents' is not base64"),
        ({"type": "attachment"}, {**FILE, "contents": 5}, r"'f': 'contents' is of type int; give"),
        (
            {"type": "attachment"},
            {**FILE, "contents": bytes(MAX_ATTACHMENT_BYTES + 1)},
            r"'f' has 1,048,577 bytes, and an attachment has at most 1,048,576",
        ),
    ],
)
def test_wrong_values(field: dict[str, Any], value: object, message: str) -> None:
    """A wrong value is refused with the field's key and the fix, and is not shown."""
    with pytest.raises(AppConfigError, match=f"^config field {message}"):
        schema({"key": "f", **field}).check({"f": value})


def test_unknown_fields() -> None:
    """A field that is not declared is refused, with a close one and those that there are."""
    with pytest.raises(AppConfigError, match=r"unknown field 'ulr'; did you mean 'url'\? the f"):
        schema({"key": "url"}).check({"ulr": "x"})
    with pytest.raises(AppConfigError, match=r"unknown field 'url'; it has none"):
        schema().check({"url": "x"})
    with pytest.raises(AppConfigError, match=r"unknown field '5'"):
        schema({"key": "url"}).check({5: "x"})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("conditions", "given", "holds"),
    [
        ([["a", "S3"]], "S3", True),
        ([["a", "S3"]], "GCS", False),
        ([["a"]], "GCS", True),
        ([["a"]], None, False),
        ([["a", None]], "", False),
        ([["a", ""]], None, True),
        ([["a", "=", "S3"]], "S3", True),
        ([["a", "!=", "S3"]], "S3", False),
        ([["a", "!=", "S3"]], "GCS", True),
        ([["a", "S3"], ["b"]], "S3", False),
        ([], None, True),
    ],
)
def test_conditions(conditions: list[Any], given: str | None, *, holds: bool) -> None:
    """A field is required if all of `required_if` holds; one that is not visible never is."""
    others = ({"key": "a"}, {"key": "b"})
    config = {} if given is None else {"a": given}
    for field, required in (
        ({"required_if": conditions}, holds),
        ({"required": True, "visible_if": conditions}, holds),
        ({"required_if": conditions, "visible_if": [["b", "x"]]}, False),
    ):
        checks = schema(*others, {"key": "f", **field})
        if required:
            with pytest.raises(AppConfigError, match="field 'f' is required"):
                checks.check(config)
        else:
            assert checks.check(config) == config


def test_conditions_see_defaults() -> None:
    """A condition looks at another field's default if that field is not given."""
    fields: list[dict[str, Any]] = [
        {"key": "a", "default": "S3"},
        {"key": "f", "required_if": [["a", "S3"]]},
    ]
    with pytest.raises(AppConfigError, match="field 'f' is required"):
        schema(*fields).check({})


@pytest.mark.parametrize("value", ['{"a": [1]}', {"a": [1]}])
def test_json(value: object) -> None:
    """JSON is given as text or as a value, and is the value for the app."""
    assert schema({"key": "f", "type": "json"}).check({"f": value}) == {"f": {"a": [1]}}


def test_attachments() -> None:
    """An attachment is kept in base64, and read as bytes; `meta.config` is without it."""
    checks = schema({"key": "f", "type": "attachment"}, {"key": "g", "type": "attachment"})
    config = checks.check({"f": FILE})

    assert config == {"f": STORED} == checks.check(config)
    values, attachments = checks.split(config)
    assert (values, attachments) == ({}, {"f": Attachment(**FILE)})
    assert "{" not in repr(attachments["f"])


SECRETIVE = schema(
    {"key": "url"},
    {"key": "token", "secret": True},
    {"key": "key", "type": "attachment", "secret": True},
    {"key": "auth", "type": "json", "secret": True},
)
CONFIG = {"url": "http://x", "token": "hunter2", "key": STORED, "auth": {"a": ["pass-word"]}}


def test_mask() -> None:
    """Of a config only what is no secret and no attachment's contents is shown."""
    assert SECRETIVE.mask(CONFIG) == {
        "url": "http://x",
        "token": MASK,
        "key": "<key.json, 3 bytes>",
        "auth": MASK,
    }
    assert SECRETIVE.mask({"token": "", "auth": None}) == {"token": "", "auth": None}


def test_secrets() -> None:
    """The secrets are the texts of secret fields, and an attachment's contents."""
    assert SECRETIVE.secrets(CONFIG) == {"hunter2", STORED["contents"], "{\ufffd}", "pass-word"}
    assert SECRETIVE.secrets({"key": "broken", "token": 5}) == set()


def test_merge() -> None:
    """A masked value that comes back is the old one; None removes; the rest stays or changes."""
    masked = SECRETIVE.mask(CONFIG)

    assert SECRETIVE.merge(CONFIG, masked) == CONFIG
    assert SECRETIVE.merge(CONFIG, {"url": None, "token": "new"}) == {
        "token": "new",
        "key": STORED,
        "auth": CONFIG["auth"],
    }
    with pytest.raises(AppConfigError, match="'token' is a mask, but has no value"):
        SECRETIVE.merge({}, {"token": MASK})


WITHOUT = {
    "url": "http://x",
    "API_KEY": "abcdef",
    "nested": {"Password": "ghijkl", "list": [{"accessToken": "mnopqr", "n": 1}]},
}


def test_without_a_schema() -> None:
    """Where no schema tells, what has a secret's name is masked, kept and known as a secret."""
    masked = {
        "url": "http://x",
        "API_KEY": MASK,
        "nested": {"Password": MASK, "list": [{"accessToken": MASK, "n": 1}]},
    }

    assert OPEN.check(WITHOUT) == WITHOUT
    assert OPEN.mask(WITHOUT) == masked
    assert OPEN.merge(WITHOUT, masked) == WITHOUT
    masked["nested"]["list"][0]["n"] = 2  # type: ignore[index]
    assert OPEN.merge(WITHOUT, masked)["nested"] == {
        "Password": "ghijkl",
        "list": [{"accessToken": "mnopqr", "n": 2}],
    }
    assert OPEN.secrets(WITHOUT) == {"abcdef", "ghijkl", "mnopqr"}
    with pytest.raises(AppConfigError, match="'nested' is a mask"):
        OPEN.merge(WITHOUT, {"nested": {"list": [{}, {"token": MASK}]}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(config=st.dictionaries(st.sampled_from(["url", "token", "auth", "key", "x"]), JSON))
def test_any_config_at_all(config: dict[str, Any]) -> None:
    """Any config is taken or refused by AppConfigError; checked and merged twice, it is as once."""
    SECRETIVE.mask(config)
    try:
        checked = SECRETIVE.check(config)
    except AppConfigError:
        return
    assert SECRETIVE.check(checked) == checked
    assert SECRETIVE.merge(checked, SECRETIVE.mask(checked)) == checked
