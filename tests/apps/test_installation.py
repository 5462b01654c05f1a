from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.apps.installation import Installations
from posthog_jobs.errors import (
    AppConfigError,
    AppDisabledError,
    AppLoadError,
    ConfigurationError,
    UnknownAppError,
)
from posthog_jobs.redaction import redact

if TYPE_CHECKING:
    from pathlib import Path

JOB = "def a(meta): ...\njobs = {'a': a}\n"


@pytest.fixture
def teapot(tmp_path: Path) -> str:
    (tmp_path / "teapot.py").write_text(JOB)
    return str(tmp_path / "teapot.py")


@pytest.fixture
def broken(tmp_path: Path) -> str:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no config')")
    return str(tmp_path / "broken.py")


def install(apps: dict[Any, Any]) -> Installations:
    return Installations(apps, default_team_id=7)


def test_a_path_alone(teapot: str) -> None:
    """An app that is given as its path has no config, the default team, and is enabled."""
    installation = install({"one": teapot}).get("one")

    assert (installation.id, installation.definition.name) == ("one", "teapot")
    assert (dict(installation.config), installation.team_id) == ({}, 7)
    assert installation.version == 1


def test_one_app_installed_several_times(teapot: str) -> None:
    """Task shape: one app's code can be installed under other ids, with other config and team."""
    installations = install(
        {
            "one": {"module": teapot, "config": {"url": "a"}, "team_id": 1},
            "two": {"module": teapot, "config": {"url": "b"}, "team_id": 2},
        }
    )
    one, two = installations

    assert one.definition is two.definition
    assert (one.config["url"], two.config["url"]) == ("a", "b")
    assert installations.of_team(1) == [one]
    assert installations.of_team(2) == [two]
    assert installations.of_team(3) == []


def test_config_is_the_apps_own(teapot: str) -> None:
    """What the caller does to a config later, an installation does not see; nor can it write."""
    config = {"list": [1]}
    installation = install({"one": {"module": teapot, "config": config}}).get("one")

    config["list"].append(2)

    assert installation.config["list"] == [1]
    with pytest.raises(TypeError):
        installation.config["more"] = 1  # type: ignore[index]


def test_order(teapot: str) -> None:
    """Hooks: installations run by `order`, and as they were installed where that is the same."""
    installations = install(
        {
            "c": {"module": teapot, "order": 5},
            "b": teapot,
            "a": {"module": teapot, "enabled": False},
            "d": {"module": teapot, "order": -1},
            "e": teapot,
        }
    )

    assert [installation.id for installation in installations] == ["d", "b", "e", "c"]
    assert [installation.id for installation in installations.of_team(7)] == ["d", "b", "e", "c"]


def test_a_disabled_app(teapot: str) -> None:
    """App gone: a disabled app is refused with the app id and how to enable it."""
    installations = install({"one": {"module": teapot, "enabled": False}})

    assert list(installations) == []
    with pytest.raises(AppDisabledError, match=r"app id 'one' is disabled; set enabled=True"):
        installations.get("one")


@pytest.mark.parametrize(
    ("app_id", "message"),
    [
        ("on", r"under the id 'on'; did you mean 'one'\? installed are: one, bad"),
        ("zzz", r"under the id 'zzz'; installed are: one, bad. Add it to posthog_jobs_apps"),
        (5, r"under the id 5; installed are"),
    ],
)
def test_an_unknown_app(teapot: str, broken: str, app_id: Any, message: str) -> None:
    """App gone: an unknown app id is refused with a close one, and those that there are."""
    with pytest.raises(UnknownAppError, match=message):
        install({"one": teapot, "bad": broken}).get(app_id)


def test_no_app_at_all() -> None:
    """App gone: where nothing is installed, the message says so."""
    with pytest.raises(UnknownAppError, match="installed are: none"):
        install({}).get("one")


def test_a_broken_app_does_not_harm_the_others(teapot: str, broken: str) -> None:
    """Code that cannot be loaded is kept as broken, with its id and cause; the others run."""
    installations = install({"bad": broken, "one": teapot, "worse": "~no-such-user/a.py"})

    assert [installation.id for installation in installations] == ["one"]
    assert set(installations.broken) == {"bad", "worse"}
    assert isinstance(installations.broken["bad"].__cause__, RuntimeError)
    with pytest.raises(AppLoadError, match=r"^app id 'bad': importing .* RuntimeError: no config"):
        installations.get("bad")


def test_a_config_that_its_schema_refuses(tmp_path: Path) -> None:
    """A wrong config makes its app broken, and no other; a right one has its defaults."""
    (tmp_path / "typed.py").write_text(JOB)
    (tmp_path / "plugin.json").write_text(
        '{"main": "typed.py", "config": [{"key": "url", "required": true}, {"key": "n", '
        '"default": "5"}, {"key": "token", "secret": true}]}'
    )
    typed = str(tmp_path / "typed.py")
    config = {"url": "u", "token": "a secret of one"}
    installations = install({"bad": typed, "one": {"module": typed, "config": config}})

    assert installations.get("one").config == {"url": "u", "n": "5", "token": "a secret of one"}
    with pytest.raises(AppConfigError, match=r"^app id 'bad': config field 'url' is required"):
        installations.get("bad")
    assert redact("with a secret of one") == "with ********"


def test_asking_for_a_broken_app_again_and_again(broken: str) -> None:
    """The error of a broken app does not grow with every time that it is raised."""
    installations = install({"bad": broken})
    depths = []

    for _ in range(3):
        with pytest.raises(AppLoadError) as caught:
            installations.get("bad")
        depths.append(len(caught.traceback))

    assert len(set(depths)) == 1


def test_a_name_that_is_taken(teapot: str, tmp_path: Path) -> None:
    """Two apps of one name cannot share their tasks' names, so the second is refused."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/teapot.py").write_text(JOB)

    installations = install({"one": teapot, "two": str(tmp_path / "other/teapot.py")})

    assert [installation.id for installation in installations] == ["one"]
    with pytest.raises(AppLoadError, match=r"^app id 'two': the app name 'teapot' of .* is taken"):
        installations.get("two")


@pytest.mark.parametrize(
    "app_id", ["", "a b", "a:b", "a/b", "-a", ".a", "é", "a\n", "x" * 101, 5, None, ("a",)]
)
def test_app_ids_that_cannot_be(app_id: Any) -> None:
    """An app id that keys and logs cannot hold is refused, with what it may be made of."""
    with pytest.raises(ConfigurationError, match="use a string of up to 100 letters") as caught:
        install({app_id: "examples.teapot"})
    assert f"has the app id {app_id!r};" in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, r"\['one'\] is of type NoneType; use a module's name or a mapping"),
        (["a"], r"\['one'\] is of type list"),
        ("", r"\['one'\] names no module; add"),
        ({}, r"\['one'\] names no module; add"),
        ({"module": ""}, r"\['one'\] names no module"),
        ({"module": 5}, r"\['one'\]\['module'\] is of type int; make it str"),
        ({"modul": "a"}, r"unknown field 'modul'; did you mean 'module'\? the fields are module"),
        ({"module": "a", 5: 1}, r"unknown field 5; the fields are module, config"),
        ({"module": "a", "config": []}, r"\['config'\] is of type list; make it Mapping"),
        ({"module": "a", "team_id": True}, r"\['team_id'\] is of type bool; make it int"),
        ({"module": "a", "team_id": "1"}, r"\['team_id'\] is of type str; make it int"),
        ({"module": "a", "enabled": 1}, r"\['enabled'\] is of type int; make it bool"),
        ({"module": "a", "order": 1.5}, r"\['order'\] is of type float; make it int"),
    ],
)
def test_entries_of_the_wrong_shape(entry: Any, message: str) -> None:
    """An entry that cannot be read is refused, with its place, what it is and the fix."""
    with pytest.raises(ConfigurationError, match=f"posthog_jobs_apps.*{message}"):
        install({"one": entry})
