"""Records what the package writes to Redis: `python -m tests.wire.record` makes `wire.json` anew.

It starts a server and real workers, sends a job of each kind, lets jobs fail for each reason and
workers die with messages in their hands, and then dumps all keys, beside what the package itself
said of them. The file is a promise to whoever upgrades: what an old version wrote, a new one lists,
cancels, replays and runs. So it is only made anew beside the old one, to hold a new version's keys
as well, and never in the place of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import socket
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis

from posthog_jobs.celery import PostHogJobs
from tests.servers.nodes import RedisProcess, WorkerProcess, poll
from tests.wire import snapshot
from tests.wire.payloads import PAYLOADS
from tests.wire.settings import KETTLE, listed, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
FAR: Final = datetime(2099, 12, 31, 23, 59, 59, 123_000, tzinfo=UTC)
#: By which a message says that it waited for its app for as long as it may.
WAITED: Final = {"posthog_jobs_waited": 99}


class Recording:
    """A server, what is written to it, and the workers that write."""

    def __init__(self, folder: Path, server: RedisProcess) -> None:
        self.folder, self.server = folder, server
        self.client: Any = redis.Redis.from_url(server.url)
        said = settings(water=False)
        self.app = PostHogJobs(config_source={**said, "broker_url": server.url})
        self.kettle = self.app.meta_for("kettle")
        self.workers = 0
        self.again: list[str] = []
        self.burnt = ""
        self.sent: dict[str, str] = {}

    def worker(self, pool: str = "solo") -> WorkerProcess:
        self.workers += 1
        folder = self.folder / f"worker{self.workers}"
        folder.mkdir()
        lines = [f"{name} = {value!r}\n" for name, value in settings(water=False).items()]
        (folder / "celeryconfig.py").write_text("".join(lines))
        command = [sys.executable, "-m", "celery", "-A", "tests.wire.tasks", "worker"]
        options = ["--pool", pool, "-c2", "-Q", "celery,teapots", "-n", "w@host", "-l", "INFO"]
        env = {"PYTHONPATH": str(ROOT), "CELERY_BROKER_URL": self.server.url}
        worker = WorkerProcess(folder, [*command, *options, "--without-mingle"], env)
        worker.ready()
        return worker

    def send(self, name: str, args: tuple[Any, ...], **options: Any) -> str:
        """Send a task as any Celery producer does."""
        return str(self.app.send_task(name, args, **options).id)

    def keep(self, what: str, task_id: str) -> str:
        """Remember what an id was sent for."""
        self.sent[task_id] = what
        return task_id

    # -- what workers make of what is sent --------------------------------------------------------

    def install(self) -> None:
        """Fill the store, with jobs of apps that are disabled or removed before they run."""
        apps, water = self.app.apps, {"water": True}
        for app_id in ("stored", "off", "gone", "purged"):
            apps.install(KETTLE, id=app_id, config=water, team_id=9, order=len(app_id))
            if app_id != "purged":
                self.keep("unicode", self.note(app_id, "unicode"))
        apps.configure("stored", {"sugar": Decimal("1.5"), "milk": False, "names": ["茶", {}]})
        apps.disable("off")
        self.app.meta_for("gone").cache.set("left", value=1)
        apps.uninstall("gone", cancel_jobs=False)
        apps.uninstall("purged", purge=True)

    def note(self, app_id: str, payload: str) -> str:
        return self.app.meta_for(app_id).jobs.note(PAYLOADS[payload]).run_now().id

    def keep_values(self) -> None:
        """Write one of each of what an app keeps."""
        meta = self.kettle
        for name, value in PAYLOADS.items():
            meta.cache.set(f"value: {name}", value)
            meta.storage.set(f"value: {name}", value)
        meta.cache.set("for a while", value="茶", ttl=30 * 24 * 3600)
        meta.cache.incr("count")
        meta.cache.lpush("a list", [1, {"two": None}, "☕"])
        meta.metrics["cups"].increment(2.5)
        meta.metrics["hottest"].max(98)
        meta.metrics["coldest"].min(-1)
        meta.utils.cursor.init("page", 40)
        meta.utils.cursor.increment("page", 2)

    def fail(self) -> None:
        """Let jobs fail for every reason but that their worker died, and retries wait."""
        jobs = self.kettle.jobs
        self.keep("typed in a dict", jobs.burn(PAYLOADS["typed in a dict"]).run_now().id)
        burnt = [self.keep("string", jobs.burn(PAYLOADS["string"]).run_now().id) for _ in "12"]
        self.keep("unicode", jobs.give_up(PAYLOADS["unicode"], key="Käse").run_now().id)
        self.keep("date", jobs.boil_dry(PAYLOADS["date"]).run_in(0.1, "seconds").id)
        for name, args, app_id in (
            ("note", ("nobody", PAYLOADS["unicode"]), "nobody"),
            ("note", ("broken", PAYLOADS["bytes"]), "broken"),
            ("no_such_job", ("kettle", PAYLOADS["bytes"]), "kettle"),
            ("nothing", ("kettle", PAYLOADS["bytes"]), "kettle"),
        ):
            headers = {"posthog_jobs_app": app_id, **WAITED}
            task_id = self.send(f"posthog_jobs.kettle.{name}", args, headers=headers)
            self.keep("unicode" if app_id == "nobody" else "bytes", task_id)
        self.client.lpush("celery", b"\xff\x00\x01")
        again = [
            self.keep("dict", jobs.again(PAYLOADS["dict"]).run_now().id),
            self.keep("list", jobs.again(PAYLOADS["list"], key="Käse 🧀").run_now().id),
            self.keep("UUID", jobs.again(PAYLOADS["UUID"], key="far").run_now().id),
        ]
        for team in (1, 2, 3):
            self.app.capture({"event": f"tea ☕ {team}", "team_id": team, "distinct_id": "ü"})
        self.keep("shop", self.tick())

        worker = self.worker()
        poll("what failed", lambda: self.app.failures.count() == 12)
        poll("retries", lambda: all(self.app.schedule.get(task_id) for task_id in again))
        for job in ("posthog_jobs.on_event", "posthog_jobs.export_events"):
            poll(job, lambda job=job: self.app.schedule.count(job=job) == 1)
        poll("a flush", lambda: self.app.schedule.count(app_id="closed", job="flush_export"))
        poll("ticks", lambda: self.app.schedule.count(job="run_every_hour") == 2)
        poll("a tick that ran", lambda: self.client.exists("posthog_jobs:ticks:shop"))
        replayed = self.app.failures.replay(burnt[0])
        poll("a replay that failed", lambda: self.app.failures.get(replayed))
        worker.kill()
        self.keep("string", replayed)
        self.again, self.burnt = again, burnt[1]

    def tick(self) -> str:
        """Send the tick of an hour that began, as the package does for one that was missed."""
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        args, headers = ("shop", int(hour.timestamp())), {"posthog_jobs_app": "shop"}
        return self.send("posthog_jobs.run_every_hour", args, eta=hour, headers=headers)

    def ids(self, *jobs: str) -> Iterator[str]:
        for job in jobs:
            yield from (waiting.id for waiting in self.app.schedule.list(job=job).jobs)

    # -- what workers leave -----------------------------------------------------------------------

    def die(self) -> None:
        """Let workers die: three of one job, and two with messages in their hands."""
        jobs = self.kettle.jobs
        lost = self.keep("true", jobs.explode(PAYLOADS["true"]).run_now().id)
        for _ in range(3):
            worker = self.worker()
            poll("the death of a worker", lambda worker=worker: worker.status == "exited")
        worker = self.worker()
        poll("a job that ended its workers", lambda: self.app.failures.get(lost))
        self.keep("datetime in UTC", jobs.hold(PAYLOADS["datetime in UTC"]).run_now().id)
        poll("a job that runs", lambda: self.kettle.cache.llen("held") == 1)
        worker.kill()
        worker = self.worker("threads")
        poll("a job that runs again", lambda: self.kettle.cache.llen("held") == 2)
        self.keep("Decimal", jobs.hold(PAYLOADS["Decimal"]).run_now().id)
        poll("a job beside it", lambda: self.kettle.cache.llen("held") == 3)
        self.keep("time", jobs.note(PAYLOADS["time"]).run_now().id)
        self.keep("bytes", jobs.note(PAYLOADS["bytes"], key="fetched").run_now().id)
        poll("messages that it fetched", lambda: not self.client.exists("celery"))
        worker.kill()

    # -- what nobody has taken --------------------------------------------------------------------

    def wait(self) -> None:
        """Let jobs wait: some for ever, some overdue."""
        jobs = self.kettle.jobs
        for name, payload in PAYLOADS.items():
            self.keep(name, jobs.note(payload).run_at(FAR).id)
        self.keep("absent", jobs.nothing().run_at(FAR).id)
        self.keep("unicode", jobs.note(PAYLOADS["unicode"], key="Ключ ☕").run_in(20, "years").id)
        self.keep("string", jobs.brewAsync(PAYLOADS["string"]).run_at(FAR).id)
        for payload in ("unicode", "string", "bytes"):
            self.keep(payload, jobs.note(PAYLOADS[payload]).run_in(900, "milliseconds").id)
        late = jobs.note(PAYLOADS["Decimal"], key="late")
        self.keep("Decimal", late.run_at(datetime.now(UTC) + timedelta(seconds=1)).id)
        self.keep("absent", jobs.nothing().run_in(1, "second").id)
        self.keep("date", jobs.brewAsync(PAYLOADS["date"]).run_in(1, "second").id)
        self.keep("dict", self.app.meta_for("stored").jobs.note(PAYLOADS["dict"]).run_at(FAR).id)
        # of an app that nobody has, in its own letters
        headers, name = {"posthog_jobs_app": "küche"}, "posthog_jobs.küche.Tee kochen ☕"
        self.keep("unicode", self.send(name, ("küche", "茶"), eta=FAR, headers=headers))
        self.keep("plain 2099", self.send("plain.add", (1, 2), eta=FAR))
        self.keep("plain 7", self.send("plain.add", (3, 4), countdown=1))
        moved = jobs.note(PAYLOADS["zero"], key="moved").run_at(FAR).id
        self.app.schedule.run_now(self.keep("zero", moved))
        self.app.schedule.cancel(jobs.note(0, key="cancelled").run_at(FAR).id)

    def queue(self) -> None:
        """Leave jobs in their queues."""
        jobs = self.kettle.jobs
        for name, payload in PAYLOADS.items():
            self.keep(name, jobs.note(payload).run_now().id)
        self.keep("absent", jobs.nothing().run_now().id)
        self.keep("list", jobs.brewAsync(PAYLOADS["list"]).run_now().id)
        headers = {"posthog_jobs_app": "kettle"}
        for payload, options in (
            ("unicode", {"priority": 6}),
            ("dict", {"priority": 9, "countdown": 0.9}),
            ("list", {"compression": "gzip"}),
        ):
            args = ("kettle", PAYLOADS[payload])
            self.keep(
                payload, self.send("posthog_jobs.kettle.note", args, headers=headers, **options)
            )
        self.keep("plain 9", self.send("plain.add", (4, 5)))
        self.app.capture({"event": "tea ☕ 4", "properties": {"cups": 1}, "distinct_id": "ü"})

    def move(self) -> None:
        """Replay, and make overdue what workers sent again; no worker takes it any more."""
        self.keep("string", self.app.failures.replay(self.burnt))
        soon = datetime.now(UTC) + timedelta(seconds=1)
        *some, last = self.again
        for waiting in (*some, *self.ids("on_event", "export_events")):
            self.app.schedule.reschedule(waiting, soon)
        self.app.schedule.reschedule(last, FAR)

    def said(self) -> dict[str, Any]:
        """Return what the package says of all this through its public interface."""
        schedule, failures = self.app.schedule, self.app.failures
        waiting = {
            job.id: {
                "app_id": job.app_id, "job": job.job, "due": job.due.isoformat(), "key": job.key,
                "queue": job.queue, "attempt": job.attempt, "last_error": job.last_error,
                "body": job.body.decode(),
            }
            for job in schedule.list(limit=1000).jobs
        }  # fmt: skip
        failed = {}
        for replayed in (False, True):
            for each in failures.list(limit=1000, replayed=replayed).jobs:
                job = failures.get(each.id)
                assert job is not None
                body = job.body
                failed[job.id] = {
                    "app_id": job.app_id, "job": job.job, "reason": job.reason.value,
                    "exception": job.exception, "message": job.message, "worker": job.worker,
                    "attempts": job.attempts, "key": job.key, "queue": job.queue,
                    "due": job.due and job.due.isoformat(), "replay_of": job.replay_of,
                    "ended": job.ended.isoformat(), "replayed_as": job.replayed_as,
                    "traceback": job.traceback,
                    "body": None if body is None else body.decode(),
                }  # fmt: skip
        return {"waiting": waiting, "failed": failed, "apps": listed(self.app)}


def record(folder: Path) -> dict[str, Any]:
    """Return the recording."""
    server = RedisProcess.launch(folder)
    try:
        server.ready()
        recording = Recording(folder, server)
        recording.install()
        recording.keep_values()
        recording.fail()
        recording.die()
        recording.wait()
        recording.queue()
        recording.move()
        assert recording.client.exists("posthog_jobs:export:closed"), "too slow: it was exported"
        poll("all that is to be overdue", lambda: overdue(recording.app))
        return {
            "at_ms": time.time() * 1000,
            "sent": recording.sent,
            **json.loads(anonymous(json.dumps(recording.said()))),
            "keys": snapshot.dump(recording.client, anonymous),
        }
    finally:
        server.kill()


def overdue(app: PostHogJobs) -> bool:
    """Whether all is overdue that is due within a minute, but for ticks."""
    forecast, ticks = app.schedule.forecast(), app.schedule.forecast(job="run_every_hour")
    now = datetime.now(UTC)
    return app.schedule.count(before=now) == forecast.minute - ticks.minute


def anonymous(text: str) -> str:
    """Take this machine out of a text; none of what is replaced stands where lengths count."""
    for own, other in (
        (str(ROOT), "/srv/app"),
        (sys.base_prefix, "/usr"),
        (socket.gethostname(), "host"),
        (platform.node(), "host"),
    ):
        text = text.replace(own, other)
    return re.sub(r"gen\d+@", "gen1@", text)


def main() -> None:
    """Record, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=snapshot.FILE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        recorded = record(Path(folder))
        text = json.dumps(recorded, indent=1, ensure_ascii=False)
        arguments.file.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
