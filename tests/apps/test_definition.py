from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.apps.definition import HOOKS, define_app
from posthog_jobs.apps.manifest import Manifest
from posthog_jobs.errors import AppConfigError, AppLoadError

if TYPE_CHECKING:
    from posthog_jobs.apps.definition import AppDefinition

APP = r"^app 'teapot' \(myapps\.teapot\)"


def with_payload(payload: Any, meta: Any) -> None: ...
def without_payload(meta: Any) -> None: ...


def define(**namespace: Any) -> AppDefinition:
    return define_app("teapot", "myapps.teapot", namespace)


@pytest.mark.parametrize("hook", HOOKS)
def test_both_spellings_of_a_hook(hook: str) -> None:
    """Hooks: Python's name and PostHog's are accepted as one."""
    spelling, parameters = HOOKS[hook]
    function = without_payload if len(parameters) == 1 else with_payload

    for name in (hook, spelling):
        assert define(**{name: function}).hooks == {hook: function}


@pytest.mark.parametrize("hook", HOOKS)
def test_both_spellings_at_once(hook: str) -> None:
    """Hooks: both names in one app are an error at load, which names both."""
    both = {hook: without_payload, HOOKS[hook][0]: without_payload}

    with pytest.raises(AppLoadError, match=rf"{APP} has both {hook} and {HOOKS[hook][0]}, one"):
        define(**both)


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("process_event", without_payload, r"takes \(meta.*write it as process_event\(event, meta"),
        ("processEvent", without_payload, r"hook processEvent takes"),
        ("setup_plugin", with_payload, r"write it as setup_plugin\(meta\)"),
        ("setupPlugin", lambda: None, r"write it as setupPlugin\(meta\)"),
        ("on_event", None, "of type NoneType, not a function"),
        ("onEvent", int, "of type type, not a function"),
    ],
)
def test_hooks_that_no_call_fits(name: str, function: Any, message: str) -> None:
    """Hooks: one that cannot be called as such is refused at load, with app, hook and fix."""
    with pytest.raises(AppLoadError, match=rf"{APP}: hook {name} .*") as caught:
        define(**{name: function})
    assert caught.match(message)


def test_a_module_that_is_no_app() -> None:
    """Export: a module with neither jobs nor hooks is refused, with what to add."""
    with pytest.raises(AppLoadError, match=rf"{APP} exports neither jobs nor hooks.*add `jobs"):
        define(helper=with_payload, jobs={})


def test_a_definition_does_not_change() -> None:
    """Export: what was checked is what runs; the app's own dict changes nothing any more."""
    jobs = {"a": with_payload}
    definition = define(jobs=jobs)

    jobs["b"] = with_payload

    assert list(definition.jobs) == ["a"]
    with pytest.raises(TypeError):
        definition.jobs["b"] = definition.jobs["a"]  # type: ignore[index]


def test_every_export_can_be_configured() -> None:
    """Hooks: the config of an app with export_events has its three fields, declared or not."""
    manifest = Manifest.parse(
        {"config": [{"key": "exportEventsBufferSeconds", "default": "30"}, {"key": "url"}]}
    )

    def define(**namespace: Any) -> AppDefinition:
        return define_app("teapot", "myapps.teapot", namespace, manifest)

    exporting = define(export_events=with_payload).manifest.schema
    other = define(on_event=with_payload).manifest.schema

    assert exporting.check({"exportEventsToIgnore": "a,b"}) == {
        "exportEventsBufferSeconds": "30",
        "exportEventsToIgnore": "a,b",
    }
    with pytest.raises(AppConfigError, match="unknown field 'exportEventsToIgnore'"):
        other.check({"exportEventsToIgnore": "a,b"})
