"""`celery -A posthog_jobs jobs failed | replay | discard`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from posthog_jobs.errors import AppDisabledError
from tests.broken import Broken
from tests.operate.test_cli_jobs import Done, run

if TYPE_CHECKING:
    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess

SECRET = "a payload"


@pytest.fixture
def broken(idle_app: PostHogJobs, idle_server: RedisProcess) -> Broken:
    return Broken(idle_app, idle_server)


def test_failed(idle_app: PostHogJobs, broken: Broken) -> None:
    """Failed: a table, the newest first, without what may quote the payload."""
    one = broken.fail(ValueError(SECRET))
    other = broken.fail(AppDisabledError("off"), "second", "slow")

    done = run(idle_app, "failed")

    head, *rows = (line.split("  ") for line in done.out.splitlines())
    assert [word.strip() for word in head if word] == [
        "ID", "APP", "JOB", "FAILED (UTC)", "REASON", "EXCEPTION", "ATTEMPTS",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert [row[:3] for row in cells] == [[other, "second", "slow"], [one, "recorder", "record"]]
    assert [row[4:] for row in cells] == [
        ["app disabled", "AppDisabledError", "1"],
        ["exception", "ValueError", "1"],
    ]
    assert (done.code, done.err) == (0, "")
    assert SECRET not in run(idle_app, "failed", "--json").out
    (listed,) = run(idle_app, "failed", "--reason", "app disabled", "--json").json["jobs"]
    assert (listed["id"], listed["task"]) == (other, "posthog_jobs.recorder.slow")


def test_failed_pages_and_counts(idle_app: PostHogJobs, broken: Broken) -> None:
    """Failed: page by page; --counts says how many of what kind; nothing is said in words."""
    assert run(idle_app, "failed").out == "Nothing failed.\n"
    sent = [broken.fail() for _ in range(3)]

    done = run(idle_app, "failed", "--limit", "2")

    cursor = done.out.splitlines()[-1].removeprefix("More failed: --cursor ")
    (last,) = run(idle_app, "failed", "--cursor", cursor, "--json").json["jobs"]
    assert last["id"] == sent[0]
    assert run(idle_app, "failed", "--counts").out.splitlines()[1].split() == [
        "3", "recorder", "posthog_jobs.recorder.record", "exception",
    ]  # fmt: skip
    assert run(idle_app, "failed", "--counts", "--json").json == {
        "counts": [
            {
                "app": "recorder",
                "task": "posthog_jobs.recorder.record",
                "reason": "exception",
                "count": 3,
            }
        ],
        "dropped": 0,
    }


def test_show(idle_app: PostHogJobs, broken: Broken) -> None:
    """Show: all that is known, with message, traceback and payload."""
    task_id = broken.fail(ValueError(f"not {SECRET}"), payload={"password": SECRET})

    shown = run(idle_app, "failed", "show", task_id, "--json").json

    assert shown["payload"] == {"password": SECRET}
    assert (shown["message"], shown["traceback"]) == (f"not {SECRET}", "Traceback …")
    assert (shown["worker"], shown["queue"]) == ("w@test", "celery")
    done = run(idle_app, "failed", "show", task_id)
    assert "reason:       exception\n" in done.out
    assert f'payload:\n{{"password": "{SECRET}"}}' in done.out
    assert run(idle_app, "failed", "show", "x") == Done(
        1, "", "Error: No failed job is kept under the id x.\n"
    )


def test_show_what_is_no_message(idle_app: PostHogJobs, broken: Broken) -> None:
    """Show: bytes that are no message are shown as they are."""
    broken.client.lpush("celery", b"\xff odd")
    tag, _ = broken.fetch()
    broken.settle(tag, b'{"headers": {"id": "odd"}}', ValueError())

    assert run(idle_app, "failed", "show", "odd", "--json").json["body"] == "\ufffd odd"


def test_replay(idle_app: PostHogJobs, broken: Broken) -> None:
    """Replay: by ids, or all that fit; what cannot be is said, with exit code 1."""
    one, other, third = (broken.fail(payload=number) for number in range(3))
    elsewhere = broken.fail(app_id="second")

    done = run(idle_app, "replay", one, "x")
    assert (done.code, done.err) == (1, "no failed job is kept under the id 'x'\n")
    job = idle_app.failures.get(one)
    assert job is not None
    assert done.out == f"{one}: sent again as {job.replayed_as}\n"

    again = run(idle_app, "replay", one)
    assert again.code == 1
    assert "was replayed already" in again.err
    assert list(run(idle_app, "replay", other, "--json").json) == [other]
    assert run(idle_app, "replay", "--all", "--app", "recorder").out == "1 sent again.\n"
    assert third not in run(idle_app, "failed").out
    assert third in run(idle_app, "failed", "--replayed").out
    assert run(idle_app, "replay", "--all", "--json").json == {"replayed": 1}
    assert elsewhere in run(idle_app, "failed", "--replayed").out
    assert broken.client.llen("celery") == 4


def test_discard(idle_app: PostHogJobs, broken: Broken) -> None:
    """Discard: by ids, or all that fit; exit code 1 for an id that is none."""
    one, other = broken.fail(), broken.fail(job="slow")

    assert run(idle_app, "discard", one, "x") == Done(
        1, f"{one}: discarded\nx: is not a failed job\n", ""
    )
    assert run(idle_app, "discard", "--all", "--job", "record").out == "0 discarded.\n"
    assert run(idle_app, "discard", other, "--json").json == {other: True}
    assert run(idle_app, "discard", "--all", "--json").json == {"discarded": 0}


@pytest.mark.parametrize("command", ["replay", "discard"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Say which: ids, or --all"),
        (("--app", "recorder"), "Say which: ids, or --all"),
        (("x", "--all"), "Give ids, or --all"),
        (("x", "--job", "record"), "Give ids, or --all"),
        (("--all", "--reason", "boredom"), "'boredom' is not a reason; they are \"exception\""),
        (("--all", "--before", "2030-01-01"), "'--before': 2030-01-01 has no time zone"),
    ],
)
def test_mistakes(
    idle_app: PostHogJobs, broken: Broken, command: str, arguments: tuple[str, ...], says: str
) -> None:
    """Mistakes: all is done only where --all says so; what is wrong is said; nothing is done."""
    broken.fail()

    done = run(idle_app, command, *arguments)

    assert done.code == 2
    assert says in done.err
    assert json.loads(run(idle_app, "failed", "--counts", "--json").out)["counts"][0]["count"] == 1
