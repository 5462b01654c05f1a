from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from posthog_jobs.apps.loading import load_app
from posthog_jobs.errors import AppLoadError

if TYPE_CHECKING:
    from pathlib import Path

JOB = "def a(meta): ...\njobs = {'a': a}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to import from; a test's modules need names of their own."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_module(importable: Path) -> None:
    """A module is loaded once, under the last part of its name."""
    write(importable / "pkg_a/__init__.py", "")
    write(importable / "pkg_a/teapot.py", JOB)

    definition = load_app("pkg_a.teapot")

    assert (definition.name, definition.source) == ("teapot", "pkg_a.teapot")
    assert load_app("pkg_a.teapot") is definition


def test_a_package_with_a_manifest(importable: Path) -> None:
    """A package is named by the plugin.json beside it."""
    write(importable / "pkg_b/__init__.py", JOB)
    write(importable / "pkg_b/plugin.json", '{"name": "The Teapot!"}')

    assert load_app("pkg_b").name == "The_Teapot_"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_module", "there is no module 'no_such_module'; check the spelling, install"),
        ("no_such_package.teapot", "there is no module 'no_such_package.teapot'"),
        ("json.no_such_part", "there is no module 'json.no_such_part'"),
        ("json", r"app 'json' \(json\) exports neither"),
        ("./no/such.py", r"there is no file or folder '\./no/such\.py'; check the path"),
        ("~no-such-user/app.py", "'~no-such-user/app.py' cannot be read"),
        ("a\0/b.py", "cannot be read: .*embedded null .*; check the path"),
        ("/" + "x" * 300 + ".py", "cannot be read: .*too long"),
    ],
)
def test_sources_that_are_not_there(source: str, message: str) -> None:
    """A source that nothing is found under is refused, with its name and what to check."""
    with pytest.raises(AppLoadError, match=message):
        load_app(source)


BROKEN = {
    "raises": ("\nraise RuntimeError('no config')", "RuntimeError: no config", 2),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3", 1),
    "falls": ("raise GeneratorExit", "GeneratorExit", 1),
    "syntax": ("x = 1\ndef a(:\n", "SyntaxError", 2),
    "nested": ("import no_such_library", "No module named 'no_such_library'", 1),
    "bare": ("assert False", "raised AssertionError \\(", 1),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("as_path", [False, True], ids=["module", "path"])
def test_code_that_fails_when_imported(importable: Path, name: str, *, as_path: bool) -> None:
    """Code that does not import is refused, with its source, the error, the file and line."""
    code, reason, line = BROKEN[name]
    file = write(importable / f"broken_{name}.py", code)
    source = str(file) if as_path else f"broken_{name}"
    before = set(sys.modules)

    with pytest.raises(AppLoadError, match=f"^importing '{source}' raised ") as caught:
        load_app(source)

    assert caught.match(reason)
    assert f"{file.name}:{line}); mend the app's code" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert set(sys.modules) == before


def test_a_broken_import_inside_of_a_package(importable: Path) -> None:
    """A missing module that the app imports is not taken for the app itself."""
    write(importable / "pkg_c/__init__.py", "")
    write(importable / "pkg_c/app.py", "from pkg_c import missing\nimport pkg_c.gone\n")

    with pytest.raises(AppLoadError, match=r"importing 'pkg_c.app' raised ImportError.*missing"):
        load_app("pkg_c.app")
    write(importable / "pkg_c/app.py", "import pkg_c.gone\n")
    with pytest.raises(AppLoadError, match=r"raised ModuleNotFoundError.*pkg_c\.gone"):
        load_app("pkg_c.app")


def test_a_file_that_is_mended_can_be_loaded(tmp_path: Path) -> None:
    """What could not be loaded is not remembered."""
    file = write(tmp_path / "app.py", "raise ValueError")
    with pytest.raises(AppLoadError):
        load_app(str(file))

    write(file, JOB + "# mended")

    assert load_app(str(file)).name == "app"


def test_a_module_that_is_refused_is_refused_again(importable: Path) -> None:
    """A second try does not let through what the first one refused."""
    write(
        importable / "twice.py",
        "from posthog_jobs import job\n" + "@job\ndef a(meta): ...\n" * 2,
    )

    for _ in range(2):
        with pytest.raises(AppLoadError, match="two jobs named 'a'"):
            load_app("twice")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or folder is loaded once, however its path is spelt."""
    file = write(tmp_path / "apps/teapot.py", JOB)
    folder = write(tmp_path / "apps/kettle.v2/__init__.py", JOB).parent
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    definition = load_app(str(file))
    assert definition.name == "teapot"
    for source in ("apps/teapot.py", "./apps/../apps/teapot.py", "~/apps/teapot.py"):
        assert load_app(source) is definition
    definition = load_app(str(folder))
    assert definition.name == "kettle_v2"
    for source in ("./apps/kettle.v2", "apps/kettle.v2/", "apps/kettle.v2/__init__.py"):
        assert load_app(source) is definition


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path `.` is an app with the name of the folder that it is."""
    write(tmp_path / "kettle/__init__.py", JOB)
    monkeypatch.chdir(tmp_path / "kettle")

    assert load_app(".").name == "kettle"


def test_a_folder_with_a_main(tmp_path: Path) -> None:
    """A folder's plugin.json names the app and its file, which imports what stands beside it."""
    write(tmp_path / "plugin.json", '{"name": "teapot", "main": "main.py"}')
    write(tmp_path / "main.py", "from .parts.more import a\nfrom . import top\njobs = {'a': a}")
    write(tmp_path / "top.py", "")
    write(tmp_path / "parts/__init__.py", "")
    write(tmp_path / "parts/more.py", "from .. import top\ndef a(meta): return top.__name__\n")

    definition = load_app(str(tmp_path))

    assert (definition.name, definition.source) == ("teapot", str(tmp_path))
    assert definition.jobs["a"].function(None).endswith(".top")


def test_two_folders_with_parts_of_one_name(tmp_path: Path) -> None:
    """The modules of one folder are not those of another."""
    for name in ("one", "two"):
        write(tmp_path / name / "__init__.py", "from .part import a\njobs = {'a': a}")
        write(tmp_path / name / "part.py", f"def a(meta): return {name!r}\n")

    functions = [load_app(str(tmp_path / name)).jobs["a"].function for name in ("one", "two")]

    assert [function(None) for function in functions] == ["one", "two"]


@pytest.mark.parametrize("main", ["../outside.py", "link.py", "{absolute}", "no.py", "", ".", "s"])
def test_a_main_that_is_no_file_of_the_folder(tmp_path: Path, main: str) -> None:
    """A `main` that is missing, or leads out of the folder, is refused and never run."""
    outside = write(tmp_path / "outside.py", "import sys; sys.was_run = True\n" + JOB)
    folder = tmp_path / "app"
    write(folder / "s" / "__init__.py", JOB)
    (folder / "link.py").symlink_to(outside)
    write(folder / "plugin.json", json.dumps({"main": main.format(absolute=outside)}))

    with pytest.raises(AppLoadError, match=r'has no file .*"main" in its plugin\.json'):
        load_app(str(folder))
    assert not hasattr(sys, "was_run")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", r"plugin\.json cannot be read as JSON"),
        ("\xff", r"plugin\.json cannot be read as JSON"),
        ("[]", r"plugin\.json is not a JSON object; write"),
        ('{"name": 5}', r"plugin\.json: 'name' is of type int; make it a string"),
        ('{"name": ""}', r"'' gives no app name for tasks; .*starting with a letter"),
        ('{"name": "9 lives"}', r"'9 lives' gives no app name"),
        (json.dumps({"name": "x" * 201}), r"gives no app name.*up to 200"),
        ('{"main": "index.js"}', r"index\.js' is not a Python file"),
    ],
)
def test_manifests_that_say_nothing_usable(tmp_path: Path, manifest: str, message: str) -> None:
    """A plugin.json that cannot be used is refused, with what is wrong in it."""
    write(tmp_path / "app/__init__.py", JOB)
    write(tmp_path / "app/index.js", "")
    (tmp_path / "app/plugin.json").write_bytes(manifest.encode("latin-1"))

    with pytest.raises(AppLoadError, match=message):
        load_app(str(tmp_path / "app"))
