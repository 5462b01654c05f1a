"""`celery -A posthog_jobs apps …`: what it prints, its exit codes, and what it says to mistakes."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import celery
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from posthog_jobs.operate.cli.apps import apps as command
from tests.operate.test_cli_jobs import Done

if TYPE_CHECKING:
    from pathlib import Path

    from posthog_jobs.celery import PostHogJobs

MODULE = "tests.samples.recorder"
SECRET = "hunter2"


def run(app: celery.Celery, *arguments: str, stdin: str | None = None) -> Done:
    """Run the command in this process, as Celery calls it."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner().invoke(command, arguments, obj=context, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Done(result.exit_code, result.stdout, result.stderr)


def install(app: PostHogJobs, *arguments: str, stdin: str | None = None) -> Any:
    return run(app, "install", MODULE, "--id", "new", "--json", *arguments, stdin=stdin).json


def test_list(idle_app: PostHogJobs) -> None:
    """list: a table in the order of the hooks, and JSON with all that `show` has."""
    install(idle_app, "--order", "-1", "--disabled")

    head, first, second, _ = run(idle_app, "list").out.splitlines()
    assert head.split() == ["ID", "MODULE", "TEAM", "ORDER", "STATE", "FROM"]
    assert first.split() == ["new", MODULE, "1", "-1", "disabled", "store"]
    assert second.split() == ["recorder", MODULE, "1", "0", "enabled", "posthog_jobs_apps"]
    listed = run(idle_app, "list", "--json").json["apps"]
    assert [app["id"] for app in listed] == ["new", "recorder", "second"]


def test_show(idle_app: PostHogJobs) -> None:
    """show: config without secrets, state, jobs and hooks."""
    install(idle_app, "--config", f"api_key={SECRET}", "--config", "url=https://x/?a=b")

    shown = run(idle_app, "show", "new", "--json").json
    assert shown["config"] == {"api_key": "********", "url": "https://x/?a=b"}
    assert (shown["state"], shown["error"], shown["from"]) == ("enabled", None, "store")
    assert "recordAsync" in shown["jobs"]
    assert "process_event" in shown["hooks"]
    text = run(idle_app, "show", "new").out
    assert "module:   tests.samples.recorder" in text
    assert SECRET not in text


def test_config_values(idle_app: PostHogJobs, tmp_path: Path) -> None:
    """install: values are strings; @FILE is an attachment, @@ an @; --config-json is a mapping."""
    (tmp_path / "key.json").write_bytes(b'{"a": 1}')

    config = install(
        idle_app, "--config-json", "-", "--config", f"file=@{tmp_path}/key.json",
        "--config", "handle=@@posthog", "--config", "n=5", stdin='{"deep": {"a": [1]}, "n": 4}',
    )["config"]  # fmt: skip

    assert config == {
        "deep": {"a": [1]},
        "n": "5",
        "handle": "@posthog",
        "file": {
            "content_type": "application/json",
            "file_name": "key.json",
            "contents": base64.b64encode(b'{"a": 1}').decode(),
        },
    }


def test_configure(idle_app: PostHogJobs) -> None:
    """configure: changes and removes fields, and moves the installation."""
    install(idle_app, "--config", "a=1", "--config", "b=2")

    changed = run(idle_app, "configure", "new", "a=3", "--unset", "b", "--team", "4", "--json").json

    assert (changed["config"], changed["team_id"]) == ({"a": "3"}, 4)


def test_enable_and_disable(idle_app: PostHogJobs) -> None:
    """enable, disable: the state afterwards is shown; doing it again is no mistake."""
    install(idle_app)

    for _ in range(2):
        assert run(idle_app, "disable", "new", "--json").json["state"] == "disabled"
    for _ in range(2):
        assert "state:    enabled" in run(idle_app, "enable", "new").out


def test_uninstall(idle_app: PostHogJobs) -> None:
    """uninstall: without waiting jobs it needs no flag; --purge says how much it deleted."""
    install(idle_app)
    idle_app.meta_for("new").storage.set("a", 1)

    done = run(idle_app, "uninstall", "new", "--purge", "--json").json

    assert done == {"id": "new", "cancelled": None, "purged": 1}
    assert "was uninstalled" in run(idle_app, "show", "new").err
    assert run(idle_app, "uninstall", "new").out == "new is uninstalled.\n"


@pytest.mark.parametrize(("flag", "left"), [("--cancel-jobs", 0), ("--keep-jobs", 1)])
def test_uninstall_with_waiting_jobs(idle_app: PostHogJobs, flag: str, left: int) -> None:
    """uninstall: with waiting jobs and nobody to ask, one of two flags must say what to do."""
    install(idle_app)
    idle_app.meta_for("new").jobs.record(1).run_in(1, "hour")

    refused = run(idle_app, "uninstall", "new")
    assert (refused.code, idle_app.apps.get("new").entry.enabled) == (2, True)
    assert "1 job waits: say --cancel-jobs or --keep-jobs." in refused.err
    assert run(idle_app, "uninstall", "new", flag).code == 0
    assert idle_app.schedule.count() == left


@pytest.mark.parametrize(("answer", "left"), [("cancel", 0), ("keep", 1)])
def test_uninstall_asks(
    idle_app: PostHogJobs, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    """uninstall: a person is asked what becomes of waiting jobs."""
    install(idle_app)
    idle_app.meta_for("new").jobs.record(1).run_in(1, "hour")
    monkeypatch.setattr("posthog_jobs.operate.cli.apps.is_person", lambda: True)

    done = run(idle_app, "uninstall", "new", stdin=f"what\n{answer}\n")

    assert "1 job waits; what becomes of them? (cancel, keep)" in done.out
    assert done.code == 0
    assert idle_app.schedule.count() == left


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "nowhere"], 1, "no app is installed under the id 'nowhere'"),
        (["install", "no.such", "--id", "new"], 1, "there is no module 'no.such'"),
        (["install", MODULE, "--id", "recorder"], 1, "change it in celeryconfig.py"),
        (["install", MODULE], 2, "Missing option '--id'"),
        (["install", MODULE, "--id", "a b"], 1, "the app id 'a b'"),
        (["install", MODULE, "--id", "new", "--config", SECRET], 2, "written as KEY=VALUE"),
        (["install", MODULE, "--id", "new", "--config-json", SECRET], 2, "is not JSON"),
        (["install", MODULE, "--id", "new", "--config-json", "[]"], 2, "is not a JSON object"),
        (["install", MODULE, "--id", "new", "--config", "a=@/no/such"], 2, "No such file"),
        (["install", MODULE, "--id", "new", "--team", "x"], 2, "'x' is not a valid integer"),
        (["configure", "recorder", "a=1"], 1, "change it in celeryconfig.py"),
        (["configure", "recorder"], 2, "Say what to change"),
        (["disable", "recorder"], 1, "change it in celeryconfig.py"),
        (["uninstall", "nowhere"], 1, "no app is installed under the id 'nowhere'"),
    ],
)
def test_mistakes(idle_app: PostHogJobs, arguments: list[str], code: int, message: str) -> None:
    """A mistake is one line that says what to do, without a traceback or a secret."""
    done = run(idle_app, *arguments)

    assert done.code == code
    assert message in done.err
    assert SECRET not in done.err
    assert "Traceback" not in done.err
    assert [app.entry.id for app in idle_app.apps.list()] == ["recorder", "second"]


def test_a_broken_app_beside_others(idle_app: PostHogJobs) -> None:
    """An app that cannot be loaded is one line on stderr, and the command goes on."""
    idle_app.conf.posthog_jobs_apps = {"ok": MODULE, "broken": "tests.samples.raises"}

    done = run(idle_app, "list")

    assert [line.split()[0] for line in done.out.splitlines()] == ["ID", "ok", "broken"]
    (line,) = done.err.splitlines()
    assert line.startswith("app id 'broken': importing 'tests.samples.raises' raised ZeroDivision")


def test_another_app() -> None:
    """`celery apps` without our app says how to name it."""
    assert "celery -A posthog_jobs apps" in run(celery.Celery(), "list").err
