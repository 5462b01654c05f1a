"""`celery -A posthog_jobs jobs …`: what it prints, its exit codes, and what it says to mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import celery
import pytest
from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from celery.bin.base import CLIContext
from celery.bin.call import call as celery_call
from celery.exceptions import Ignore
from click.testing import CliRunner

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import JobCallError, RetryError
from posthog_jobs.jobs.retry import ON_RETRY_ERROR
from posthog_jobs.operate.cli.jobs import jobs as command
from tests.conftest import APPS, ROOT
from tests.notes import wait_for
from tests.overdue import bring_forward
from tests.servers.nodes import ENVIRONMENT, closed_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from posthog_jobs.jobs.trigger import Jobs
    from tests.servers.nodes import RedisProcess

NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


def run(app: celery.Celery, *arguments: str) -> Done:
    """Run the command in this process, as Celery calls it."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner().invoke(command, arguments, obj=context)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Done(result.exit_code, result.stdout, result.stderr)


def run_celery(folder: Path, *arguments: str, **environment: str) -> Done:
    """Run `celery -A posthog_jobs jobs …` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "posthog_jobs", "jobs", *arguments],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def jobs(idle_app: PostHogJobs) -> Jobs:
    return idle_app.meta_for("recorder").jobs


# -- list -------------------------------------------------------------------------------------


def test_list(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """list: a table, the first due first, with id, app, job, due time, time left and key."""
    late = jobs.record(1).run_at(NOON)
    soon = idle_app.meta_for("second").jobs.slow({}, key="user-42").run_in(90, "minutes")
    idle_app.send_task("somebody.elses", eta=NOON + timedelta(days=1), task_id="plain")

    done = run(idle_app, "list")

    head, *rows = (line.split() for line in done.out.splitlines())
    assert head == ["ID", "APP", "JOB", "DUE", "(UTC)", "IN", "KEY", "ATTEMPT"]
    assert [row[:3] for row in rows] == [
        [soon.id, "second", "slow"],
        [late.id, "recorder", "record"],
        ["plain", "-", "somebody.elses"],
    ]
    waits = idle_app.schedule.get(soon.id)
    assert waits is not None
    assert rows[0][3:] == [*f"{waits.due:%Y-%m-%d %H:%M:%S}".split(), "1.5", "h", "user-42", "1"]
    assert rows[1][3:5] == ["2100-01-01", "12:00:00"]
    assert rows[1][-3:] == ["d", "-", "1"]
    assert (done.code, done.err) == (0, "")


def test_list_of_nothing(idle_app: PostHogJobs) -> None:
    """list: says that nothing waits; as JSON an empty list."""
    assert run(idle_app, "list") == Done(0, "Nothing waits.\n", "")
    assert run(idle_app, "list", "--json").json == {"jobs": [], "cursor": None}


def call(app: celery.Celery, *arguments: str) -> Result:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(celery_call, arguments, obj=context)


def test_what_celery_call_sends(idle_app: PostHogJobs) -> None:
    """`celery call`: a job is listed under its app, and monitors see no payload of it."""
    name, args = "posthog_jobs.recorder.record", '["second", {"password": "hunter2"}]'
    sent = call(idle_app, name, "--args", args, "--eta", NOON.isoformat())

    (job,) = idle_app.schedule.list(app_id="second").jobs
    assert (job.id, job.job) == (sent.stdout.strip(), name)
    assert job.message["headers"]["argsrepr"] == "('second', <23 bytes>)"
    assert idle_app.schedule.count() == 1


def test_what_celery_call_and_beat_cannot_send(idle_app: PostHogJobs) -> None:
    """`celery call` and beat: arguments that no job takes are refused, with those that it takes."""
    name, named = "posthog_jobs.recorder.record", {"payload": 1}
    refusal = r"posthog_jobs.recorder.record cannot be sent so: it takes the app id and then"

    done = call(idle_app, name, "--args", '["second"]', "--kwargs", json.dumps(named))
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.search(refusal, done.stderr)
    assert "Traceback" not in done.stderr
    entry = ScheduleEntry(name, name, schedule=60, args=("second",), kwargs=named, app=idle_app)
    for _ in range(2):  # the second time its task is known
        with pytest.raises(SchedulingError, match=refusal) as caught:
            Scheduler(idle_app, lazy=True).apply_async(entry)
        assert isinstance(caught.value.__context__, JobCallError)
        idle_app.tasks.register_jobs(idle_app.runtime.installations)
    with pytest.raises(JobCallError, match=refusal):
        idle_app.send_task(name)
    assert idle_app.schedule.count() == 0


def test_list_as_json(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """List --json: all that is known of a job but its payload."""
    handle = jobs.record(1, key="é").run_at(NOON)
    idle_app.send_task("somebody.elses", eta=NOON + timedelta(days=1), task_id="plain")

    assert run(idle_app, "list", "--json").json == {
        "jobs": [
            {
                "id": handle.id,
                "app": "recorder",
                "job": "record",
                "task": "posthog_jobs.recorder.record",
                "due": "2100-01-01T12:00:00+00:00",
                "key": "é",
                "queue": "celery",
                "attempt": 1,
                "error": None,
            },
            {
                "id": "plain",
                "app": None,
                "job": None,
                "task": "somebody.elses",
                "due": "2100-01-02T12:00:00+00:00",
                "key": None,
                "queue": "celery",
                "attempt": 1,
                "error": None,
            },
        ],
        "cursor": None,
    }


def test_list_filters_and_pages(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """list: --app, --job, --before, --limit and --cursor choose; the table says how to go on."""
    sent = [jobs.record(day).run_at(NOON + timedelta(days=day)).id for day in range(5)]
    other = idle_app.meta_for("second").jobs.slow({}).run_at(NOON).id

    def ids(*arguments: str) -> list[str]:
        return [job["id"] for job in run(idle_app, "list", "--json", *arguments).json["jobs"]]

    assert ids("--app", "recorder") == sent
    assert ids("--job", "slow") == [other]
    assert ids("--job", "posthog_jobs.recorder.record", "--app", "recorder") == sent
    assert ids("--app", "recorder", "--before", "2100-01-02T14:00:00+02:00") == sent[:1]
    table = run(idle_app, "list", "--app", "recorder", "--limit", "3")
    *_, last = table.out.splitlines()
    assert last.startswith("More wait: --cursor ")
    assert ids("--app", "recorder", "--cursor", last.split()[-1]) == sent[3:]


# -- show -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_show(idle_app: PostHogJobs, compression: str | None) -> None:
    """show: what is known of a waiting job, with its payload."""
    idle_app.conf.task_compression = compression
    handle = idle_app.meta_for("recorder").jobs.record({"url": "http://x/☃"}).run_at(NOON)

    lines = run(idle_app, "show", handle.id).out.splitlines()

    assert dict(line.split(maxsplit=1) for line in lines) == {
        "id:": handle.id,
        "app:": "recorder",
        "job:": "record",
        "task:": "posthog_jobs.recorder.record",
        "due:": "2100-01-01T12:00:00+00:00",
        "key:": "null",
        "queue:": "celery",
        "attempt:": "1",
        "error:": "null",
        "payload:": '{"url": "http://x/☃"}',
    }
    assert run(idle_app, "show", handle.id, "--json").json["payload"] == {"url": "http://x/☃"}


def test_show_tells_no_payload_from_none(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """show: a payload of None is shown; without a payload there is none."""
    none = jobs.record(None).run_at(NOON)
    absent = jobs.record_nothing().run_at(NOON)

    assert run(idle_app, "show", none.id, "--json").json["payload"] is None
    assert "payload" not in run(idle_app, "show", absent.id, "--json").json


def test_show_of_a_plain_task(idle_app: PostHogJobs) -> None:
    """show: a waiting Celery task that is no job is shown, whatever its serializer is."""
    for serializer in ("json", "pickle"):
        idle_app.send_task(
            "somebody.elses", args=[1], eta=NOON, task_id=serializer, serializer=serializer
        )
        shown = run(idle_app, "show", serializer, "--json").json
        assert (shown["task"], shown["app"]) == ("somebody.elses", None)
        assert "payload" not in shown


def test_show_of_what_does_not_wait(idle_app: PostHogJobs) -> None:
    """show: one line and exit code 1 for an id under which nothing waits."""
    done = run(idle_app, "show", "no-such-id")

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: No job waits under the id no-such-id: ")


def test_a_job_that_waits_for_its_retry(idle_app: PostHogJobs) -> None:
    """list, show: attempt and last error of a retry; what the error quotes is in show alone."""
    task = idle_app.tasks["posthog_jobs.recorder.record"]
    request = {"id": "again", "args": ["recorder", 1], "kwargs": {}, "argsrepr": "", "headers": {}}
    task.push_request(**request, retries=1)
    before = datetime.now(UTC)
    try:
        with pytest.raises(Ignore):
            task.again(RetryError("no route to http://x"), ON_RETRY_ERROR, 1, retries=2)
    finally:
        task.pop_request()
    after = datetime.now(UTC) + timedelta(milliseconds=1)  # = rounded up

    listed = run(idle_app, "list")
    assert listed.out.splitlines()[1].endswith("  3, after RetryError")
    assert "http://x" not in listed.out + run(idle_app, "list", "--json").out
    shown = run(idle_app, "show", "again", "--json").json
    assert (shown["attempt"], shown["error"]) == (3, "RetryError: no route to http://x")
    waiting = idle_app.schedule.get("again")
    assert waiting is not None
    assert before <= waiting.due - timedelta(seconds=10) <= after


# -- cancel, reschedule, run-now --------------------------------------------------------------


def test_cancel(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """cancel: one line for each id; exit code 0 only if all of them waited."""
    one, two, three = (jobs.record(n).run_at(NOON).id for n in range(3))
    idle_app.schedule.run_now(three)

    assert run(idle_app, "cancel", one) == Done(0, f"{one}: cancelled\n", "")
    done = run(idle_app, "cancel", one, two, three)
    assert done == Done(
        1,
        f"{one}: does not wait\n{two}: cancelled\n"
        f"{three}: had left for its queue already, and is revoked: "
        "it may be running, or have run\n",
        "",
    )
    done = run(idle_app, "cancel", "--json", one, three)
    assert done.code == 1
    assert json.loads(done.out) == {one: "unknown", three: "promoted"}


def test_cancel_of_one_id_twice(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """cancel: an id that is given twice is cancelled once, which is no failure."""
    one = jobs.record(1).run_at(NOON).id

    assert run(idle_app, "cancel", one, one) == Done(0, f"{one}: cancelled\n", "")


def test_reschedule(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """reschedule: --at a time or --in a while; exit code 1 for what does not wait."""
    one = jobs.record(1).run_at(NOON).id

    assert run(idle_app, "reschedule", one, "--at", "2100-01-01T01:00+01:00") == Done(
        0, f"{one}: moved\n", ""
    )
    assert run(idle_app, "show", one, "--json").json["due"] == "2100-01-01T00:00:00+00:00"
    assert run(idle_app, "reschedule", one, "--in", "2", "years", "--json").json == {
        one: "rescheduled"
    }
    assert run(idle_app, "reschedule", one, "--at", "2001-01-01T00:00Z").out == (
        f"{one}: sent to its queue\n"
    )
    assert run(idle_app, "reschedule", one, "--in", "5", "minutes").code == 1
    assert run(idle_app, "reschedule", "no-such-id", "--in", "1.5", "hours") == Done(
        1, "no-such-id: does not wait\n", ""
    )


def test_run_now(idle_app: PostHogJobs, jobs: Jobs) -> None:
    """run-now: what waits goes to its queue; exit code 1 for what does not wait."""
    one = jobs.record(1).run_at(NOON).id

    assert run(idle_app, "run-now", one) == Done(0, f"{one}: sent to its queue\n", "")
    done = run(idle_app, "run-now", one, "--json")
    assert (done.code, json.loads(done.out)) == (1, {one: "promoted"})


# -- forecast ---------------------------------------------------------------------------------


def test_forecast(idle_server: RedisProcess, idle_app: PostHogJobs, jobs: Jobs) -> None:
    """forecast: a line with count and bar for each period, and how late the first one is."""
    for _ in range(4):
        jobs.record(1).run_in(30, "minutes")
    jobs.slow({}).run_at(NOON)

    assert run(idle_app, "forecast").out.splitlines() == [
        "within a minute          0",
        f"within an hour           4 {'█' * 40}",
        "within a day             0",
        "within a week            0",
        "within a month           0",
        f"later                    1 {'█' * 10}",
    ]
    assert run(idle_app, "forecast", "--json", "--job", "slow").json == {
        "minute": 0,
        "hour": 0,
        "day": 0,
        "week": 0,
        "month": 0,
        "later": 1,
        "late_seconds": 0,
    }
    assert run(idle_app, "forecast", "--json", "--app", "second").json["later"] == 0

    jobs.record_nothing().run_in(1, "hour")
    bring_forward(idle_server.client, "recorder", "record_nothing", 3600 + 90)
    assert run(idle_app, "forecast").out.splitlines()[-1] in (
        f"The first is {minutes} min late." for minutes in (1.5, 1.6, 1.7, 1.8, 1.9)
    )
    assert 89 < run(idle_app, "forecast", "--json").json["late_seconds"] < 120


# -- run --------------------------------------------------------------------------------------


def test_run(idle_app: PostHogJobs) -> None:
    """run: now, in a while or at a time, with a payload and a key, as meta.jobs does."""
    done = run(
        idle_app, "run", "recorder", "record", "--payload", "[1, null]", "--at", "2100-01-01T12:00Z"
    )
    assert done.code == 0
    task_id = done.out.split()[0]
    assert done.out == f"{task_id} is due 2100-01-01 12:00:00 UTC.\n"
    assert run(idle_app, "show", task_id, "--json").json["payload"] == [1, None]

    first = run(
        idle_app, "run", "recorder", "record_nothing", "--in", "1", "month", "--key", "k", "--json"
    ).json
    second = run(
        idle_app,
        "run",
        "recorder",
        "record_nothing",
        "--in",
        "0.5",
        "hours",
        "--key",
        "k",
        "--json",
    ).json
    assert datetime.fromisoformat(second["due"]) < datetime.fromisoformat(first["due"])
    assert idle_app.schedule.get(first["id"]) is None
    assert run(idle_app, "show", second["id"], "--json").json["key"] == "k"
    assert idle_app.schedule.count() == 2

    assert run(idle_app, "run", "recorder", "record", "--payload", '""').code == 0
    assert (
        run(idle_app, "run", "recorder", "record", "--payload", "1", "--in", "0", "days").code == 0
    )
    assert idle_app.schedule.count() == 2


def test_run_a_public_job(idle_server: RedisProcess, tmp_path: Path) -> None:
    """run: what plugin.json says of a job's payload is checked, and its defaults filled in."""
    (tmp_path / "exporter.py").write_text(
        "def export(payload, meta): ...\njobs = {'export': export, 'other': export}"
    )
    fields = {
        "since": {"type": "date", "required": True},
        "limit": {"type": "number", "default": 5},
    }
    manifest = {"main": "exporter.py", "publicJobs": {"export": {"payload": fields}}}
    (tmp_path / "plugin.json").write_text(json.dumps(manifest))
    apps = {"exporter": str(tmp_path / "exporter.py")}
    app = PostHogJobs(config_source={"broker_url": idle_server.url, "posthog_jobs_apps": apps})

    def trigger(job: str, *payload: str) -> Done:
        return run(app, "run", "exporter", job, "--in", "1", "hour", "--json", *payload)

    task_id = trigger("export", "--payload", '{"since": "2030-01-01"}').json["id"]
    described = run(app, "show", task_id, "--json").json
    assert described["payload"] == {"since": "2030-01-01", "limit": 5}
    for payload, message in (
        ((), "lacks the required field 'since'; add it: a date"),
        (("--payload", '{"since": "x"}'), "'since' is of type str or out of range; make it a date"),
        (("--payload", '{"sinc": 1}'), "unknown field 'sinc'; did you mean 'since'?"),
    ):
        done = trigger("export", *payload)
        assert done.code == 1
        assert message in done.err
    assert trigger("other", "--payload", '{"sinc": 1}').code == 0, "not public, so not checked"


def test_a_secret_in_a_message(idle_server: RedisProcess) -> None:
    """Errors: what a command prints of an error is without the secrets of configs."""
    apps = {"one": {"module": "tests.samples.recorder", "config": {"token": "hunter2-hunter2"}}}
    app = PostHogJobs(config_source={"broker_url": idle_server.url, "posthog_jobs_apps": apps})

    done = run(app, "run", "one", "hunter2-hunter2")

    assert done.code == 1
    assert "exports no job '********'" in done.err


# -- mistakes ---------------------------------------------------------------------------------

MISTAKES = [
    # what is no command line: 2
    (2, ["list", "--limit", "0"], "0 is not in the range 1<=x<=10000"),
    (
        2,
        ["list", "--before", "tomorrow"],
        "'tomorrow' is not a time; write it as 2030-",
    ),
    (2, ["list", "--before", "2030-01-01"], "2030-01-01 has no time zone; add Z for UTC"),
    (2, ["list", "--before", ""], "'' is not a time; write it as"),
    (2, ["cancel"], "Missing argument 'ID...'"),
    (2, ["show"], "Missing argument 'ID'"),
    (2, ["reschedule", "x"], "Say when: --in 5 minutes, or --at 2030-01-01T00:00Z."),
    (2, ["reschedule", "x", "--in", "5"], "Option '--in' requires 2 arguments"),
    (2, ["reschedule", "x", "--in", "five", "minutes"], "'--in': 'five' is not a valid float."),
    (
        2,
        ["reschedule", "x", "--at", "2030-01-01T00:00"],
        "no time zone; add Z for UTC, or +02:00",
    ),
    (2, ["reschedule", "x", "--at", ""], "'' is not a time; write it as"),
    (2, ["reschedule", "x", "--in", "1", "hour", "--at", "2030-01-01T00:00Z"], "both say when"),
    (2, ["run", "recorder"], "Missing argument 'JOB'"),
    (2, ["run", "recorder", "record", "--payload", "{url: x}"], "quote it: --payload '{"),
    (2, ["run", "recorder", "record", "--payload", ""], "quote it: --payload '{"),
    (
        2,
        ["run", "recorder", "record", "--payload", "1", "--at", ""],
        "'' is not a time; write it as",
    ),
    (2, ["liste"], "No such command 'liste'"),
    # what cannot be done: 1
    (1, ["list", "--cursor", "x"], "'x' is no cursor of this list"),
    (1, ["reschedule", "x", "--in", "5", "fortnights"], "unknown unit 'fortnights'"),
    (1, ["reschedule", "x", "--in", "-5", "minutes"], "use a finite number, 0 or more"),
    (1, ["reschedule", "x", "--in", "nan", "minutes"], "use a finite number"),
    (1, ["reschedule", "x", "--in", "1e300", "days"], "lies past the year 9999"),
    (1, ["reschedule", "x", "--in", "0.5", "months"], "take whole numbers"),
    (1, ["reschedule", "x", "--at", "9999-12-31T23:00-09:00"], "lies past 9999-12-31"),
    (1, ["run", "nobody", "record"], "no app is installed under the id 'nobody'"),
    (1, ["run", "recorder", "recrod"], "exports no job 'recrod'; did you mean 'record'?"),
    (1, ["run", "recorder", "record"], "needs a payload"),
    (1, ["run", "recorder", "record_nothing", "--payload", "null"], "takes no payload"),
    (1, ["run", "recorder", "record", "--payload", "NaN"], "is nan, for which JSON has no"),
    (2, ["run", "recorder", "record", "--payload", "[" * 9999 + "]" * 9999], "recursion depth"),
    (1, ["run", "recorder", "record", "--payload", "1", "--key", "a\nb"], "cannot have the key"),
    (1, ["run", "recorder", "record", "--payload", "1", "--key", ""], "cannot have the key ''"),
]


@pytest.mark.parametrize(
    ("code", "arguments", "message"), MISTAKES, ids=lambda value: str(value)[:50]
)
def test_mistakes(
    idle_server: RedisProcess, idle_app: PostHogJobs, code: int, arguments: list[str], message: str
) -> None:
    """A mistake: one line that says what is wrong, 2 for no command line, else 1; no change."""
    done = run(idle_app, *arguments)

    assert (done.code, done.out) == (code, "")
    error = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert done.err.splitlines()[-1] == error[0]
    assert idle_server.client is not None
    assert idle_server.client.exists("posthog_jobs:waiting", "celery") == 0


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (
            lambda: PostHogJobs(config_source={"broker_url": f"redis://127.0.0.1:{closed_port()}"}),
            1,
            "the broker does not answer: ",
        ),
        (
            lambda: PostHogJobs(config_source={"broker_url": "memory://"}),
            1,
            "the broker is memory, which cannot do this; Redis can",
        ),
        (
            lambda: celery.Celery("other", set_as_current=False),
            2,
            "Name the app: celery -A posthog_jobs jobs …",
        ),
    ],
    ids=["down", "memory", "other app"],
)
def test_a_broker_or_app_that_cannot(
    make: Callable[[], celery.Celery], code: int, message: str
) -> None:
    """A broker that is down or is not Redis, or another Celery app: one line, no traceback."""
    done = run(make(), "list")

    assert (done.code, done.out) == (code, "")
    assert f"Error: {message}" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", ["cancel", "forecast", "list", "reschedule", "run", "run-now", "show"]),
        ("list", ["--app ID", "--job NAME", "--before TIME", "--limit", "--cursor", "--json"]),
        ("show", ["ID", "with its payload", "--json"]),
        ("cancel", ["ID...", "is revoked", "--json"]),
        ("reschedule", ["ID", "--in N UNIT", "--at TIME", "--json"]),
        ("run-now", ["ID", "before its time", "--json"]),
        ("forecast", ["--app ID", "--job NAME", "--json"]),
        ("run", ["APP JOB", "--payload JSON", "--in N UNIT", "--at TIME", "--key", "--json"]),
    ],
)
def test_help(idle_app: PostHogJobs, name: str, words: list[str]) -> None:
    """--help: of the group and each command, says what it does and takes."""
    done = run(idle_app, *filter(None, [name]), "--help")

    assert done.code == 0
    assert done.out.startswith("Usage: ")
    for word in words:
        assert word in done.out


# -- real processes ---------------------------------------------------------------------------


def test_from_the_shell_to_a_worker(jobs_app: PostHogJobs, tmp_path: Path) -> None:
    """A process of its own: a job is triggered, listed and run now, and the worker runs it."""
    (tmp_path / "celeryconfig.py").write_text(f"posthog_jobs_apps = {APPS!r}\n")
    broker = {"CELERY_BROKER_URL": str(jobs_app.conf.broker_url)}

    triggered = run_celery(
        tmp_path, "run", "recorder", "record", "--payload", '"shell"', "--in", "1", "hour", **broker
    )
    task_id = triggered.out.split()[0]
    listed = run_celery(tmp_path, "list", "--json", **broker)
    sent = run_celery(tmp_path, "run-now", task_id, **broker)

    assert [job["id"] for job in listed.json["jobs"]] == [task_id]
    assert sent == Done(0, f"{task_id}: sent to its queue\n", "")
    assert wait_for(jobs_app, "record")[0]["payload"] == "shell"


def test_mistakes_from_the_shell(tmp_path: Path) -> None:
    """A process of its own: a broker that is down is one line and exit code 1."""
    done = run_celery(
        tmp_path, "show", "x", CELERY_BROKER_URL=f"redis://127.0.0.1:{closed_port()}/0"
    )

    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith("Error: the broker does not answer: ")
    assert "Traceback" not in done.err
