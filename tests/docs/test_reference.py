"""The reference names what there is: every setting, command, option, error and metric."""

from __future__ import annotations

import builtins
import inspect
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from celery.bin.celery import celery as celery_command

import posthog_jobs
import posthog_jobs.testing
from posthog_jobs import errors
from posthog_jobs.apps.definition import HOOKS
from posthog_jobs.broker.failure import Reason
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.settings import PREFIX, Settings
from posthog_jobs.testing import AppTester, create_meta
from tests.docs.pages import PAGES, ROOT
from tests.wire.test_names import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text()


def test_the_settings_are_those_that_there_are() -> None:
    """Settings: each one is in the table, none besides, with its default if that is a number."""
    row = re.compile(r"^\| (`posthog_jobs_.*?) \| (.*?) \|", re.MULTILINE)
    rows = row.findall(page("reference/settings.md"))
    defaults = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}

    assert set(defaults) == {f"{PREFIX}{field.name}" for field in fields(Settings)}
    for field in fields(Settings):
        if isinstance(field.default, (int, float)):
            assert defaults[f"{PREFIX}{field.name}"] == f"{field.default:,.0f}"


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{name} {word}")


@pytest.mark.parametrize("group", ["jobs", "apps"])
def test_the_command_line_is_the_one_that_there_is(group: str) -> None:
    """Command line: each command is there with its options; none is there that does not exist."""
    text = page("reference/command-line.md")
    rows = {row for row in text.splitlines() if row.startswith(f"| `{group} ")}
    named: set[str] = set()
    for name, command in commands(celery_command.commands[group], group):
        if name == group:
            continue
        row = [row for row in rows if re.search(rf"`{name}(?: [A-Z]|`)", row)]
        assert len(row) == 1, name
        named |= set(row)
        options = {o for each in command.params for o in (*each.opts, *each.secondary_opts)}
        options = {option for option in options if option.startswith("--")} - {"--json"}
        if name == "jobs discard":
            options = set()  # the same as those above
        assert set(re.findall(r"--[\w-]+", row[0])) >= options, name
    assert named == rows


def test_the_errors_are_those_that_there_are() -> None:
    """Errors: each class is there, and no other."""
    ours = {
        name
        for name, each in vars(errors).items()
        if inspect.isclass(each) and each.__module__ == errors.__name__
    }

    named = set(re.findall(r"`(?:posthog_jobs\.)?(\w+Error)[`(]", page("reference/errors.md")))
    assert {name for name in named if not hasattr(builtins, name)} == ours


def test_the_hooks_are_those_that_there_are() -> None:
    """Hooks: each one is in the table, with its parameters."""
    text = page("reference/hooks.md")

    assert set(re.findall(r"`(\w+)\((?:\w+, )?meta\)`", text)) == set(HOOKS)
    assert all(f"`{hook}({', '.join(needs)})`" in text for hook, (_, needs) in HOOKS.items())


def test_the_reasons_are_those_that_there_are() -> None:
    """Failed jobs: each reason is named where failed jobs are explained."""
    text = " ".join(page("howto/see-and-replay-what-failed.md").split())

    assert all(f"`{reason.value}`" in text for reason in Reason)


def objects() -> dict[str, Any]:
    """Return what dotted names in the docs begin with → what that is."""
    app = PostHogJobs(config_source={"broker_url": "redis://127.0.0.1:1/"})
    meta = create_meta({"jobs": {"name": lambda meta: None}, "metrics": {"name": "sum"}})
    tester = AppTester({"on_event": lambda event, meta: None})
    return {
        "posthog_jobs": posthog_jobs,
        "meta": meta,
        "app.schedule": app.schedule,
        "app.failures": app.failures,
        "app.apps": app.apps,
        "app": (app, tester),
    }


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return objects()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_names_in_the_text_exist(path: Path, known: dict[str, Any]) -> None:
    """A page: what it calls `meta.…`, `app.…` or `posthog_jobs.…` in its text exists."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"`((?:meta|app|posthog_jobs)(?:\.[a-z_]\w*)+)[`(\[]", text):
        if name.startswith(("posthog_jobs.", "meta.jobs.", "meta.global")) or name in known:
            continue
        root = max((each for each in known if name.startswith(f"{each}.")), key=len)
        owners = known[root] if isinstance(known[root], tuple) else (known[root],)
        rest = name.removeprefix(f"{root}.").split(".")[0]
        assert any(hasattr(owner, rest) for owner in owners), name


def test_methods_in_tables_exist(known: dict[str, Any]) -> None:
    """API and meta: each method that a table lists for an object is one."""
    for name in ("reference/api.md", "reference/meta.md", "howto/schedule-and-cancel-jobs.md"):
        for line in page(name).splitlines():
            owner = re.match(r"\| `((?:meta|app)\.[a-z.]+)` \|", line)
            if owner is None:
                continue
            target: Any = known.get(owner[1])
            if target is None:
                target = known["meta"]
                for part in owner[1].split(".")[1:]:
                    target = getattr(target, part)
            for method in re.findall(r"`([a-z_]+)\([^`]*\)`", line):
                assert hasattr(target, method), (owner[1], method)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "explanation/architecture.md"])
def test_the_modules_exist(name: str) -> None:
    """Contributing and architecture: the modules and packages that they send a reader to exist."""
    text = page(name)

    for module in re.findall(r"`((?:[a-z_]+/)+(?:\w+\.(?:py|lua))?)`", text):
        inside = "" if module.startswith(("tests/", "docs/")) else "posthog_jobs"
        if module != "lua/":
            assert (ROOT / inside / module).exists(), module


def test_the_public_names_are_explained() -> None:
    """API: each public name of the package, and of the testing kit, is in the docs."""
    text = page("reference/api.md") + page("howto/test-an-app.md")

    assert all(re.search(rf"\b{name}\b", text) for name in posthog_jobs.__all__)
    functions = [name for name in posthog_jobs.testing.__all__ if name.startswith("create_")]
    assert all(name in text for name in functions)


def test_the_metrics_are_those_that_there_are() -> None:
    """Metrics: each family that a worker serves is in the table, and no other."""
    rows = re.findall(r"^\| (`posthog_jobs_.*?) \|", page("reference/metrics.md"), re.MULTILINE)

    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == METRICS
