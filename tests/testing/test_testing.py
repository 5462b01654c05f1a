"""What app authors test with: an app in memory, its jobs, and a clock that is turned."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import retry_export
from posthog_jobs import RetryError
from posthog_jobs.errors import (
    AppConfigError,
    AppError,
    AppLoadError,
    AppRaisedError,
    EventError,
    NaiveDatetimeError,
    PayloadError,
    PayloadTooLargeError,
    PostHogJobsError,
    RetriesExhaustedError,
    UnknownJobError,
)
from posthog_jobs.hooks.events import check_event
from posthog_jobs.jobs.message import Steered
from posthog_jobs.jobs.retry import ON_EXPORT_RETRY, ON_RETRY_ERROR
from posthog_jobs.testing import (
    ABSENT,
    AppTester,
    create_event,
    create_identify,
    create_meta,
    create_pageview,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from posthog_jobs import JobHandle, Meta, PluginEvent, RetryPolicy

NOON = datetime(2031, 1, 31, 12, tzinfo=UTC)


def noting(payload: Any, meta: Meta) -> None:
    meta.global_.setdefault("ran", []).append(payload)


def note_nothing(meta: Meta) -> None:
    meta.global_.setdefault("ran", []).append("nothing")


def app_of(*, config: dict[str, Any] | None = None, **exports: Any) -> AppTester:
    """Return an app at noon with a job that notes its payload, and what else is given."""
    jobs = {"note": noting, "nothing": note_nothing, **exports.pop("jobs", {})}
    return AppTester({"jobs": jobs, **exports}, config=config, now=NOON)


def ran(app: AppTester) -> list[Any]:
    found: list[Any] = app.meta.global_.get("ran", [])
    return found


class TestEvents:
    """The factories of events."""

    @pytest.mark.parametrize("create", [create_event, create_pageview, create_identify])
    def test_they_are_events(self, create: Callable[..., PluginEvent]) -> None:
        """Events: each is one, complete, the same in every run, and no other's."""
        event = create()

        assert check_event(event, default_team_id=7) == event
        assert create() == event
        create()["properties"]["changed"] = True
        assert create() == event

    def test_their_names(self) -> None:
        """Events: a page view and an identification have PostHog's names and fields."""
        assert create_pageview()["event"] == "$pageview"
        assert "$current_url" in create_pageview()["properties"]
        assert create_identify()["event"] == "$identify"
        assert "email" in create_identify()["$set"]

    def test_fields_can_differ(self) -> None:
        """Events: every field can be given, and its id follows from the fields unless given."""
        event = create_pageview(event="seen", properties={}, team_id=3, **{"$set": {"a": 1}})

        assert (event["event"], event["properties"], event["team_id"]) == ("seen", {}, 3)
        assert event["$set"] == {"a": 1}
        assert event["uuid"] != create_pageview()["uuid"]
        assert create_event(uuid="mine")["uuid"] == "mine"


class TestApps:
    """What can be tested."""

    def test_a_module_is_the_one_that_was_imported(self) -> None:
        """Apps: a module is tested itself, so that what a test patches in it is what runs."""
        by_module, by_name = AppTester(retry_export), AppTester("examples.retry_export")

        for app in (by_module, by_name):
            assert list(app.meta.jobs) == ["retryRequest"]
            assert app.meta.logger.logger.name == "posthog_jobs.apps.retry_export"

    def test_a_path(self, tmp_path: Path) -> None:
        """Apps: a file is loaded as an operator's `posthog_jobs_apps` would load it."""
        (tmp_path / "one.py").write_text("def process_event(event, meta): return event")

        event = create_event()

        assert AppTester(tmp_path / "one.py").process_event(event) == event
        assert AppTester(str(tmp_path / "one.py")).process_event(event) == event

    def test_its_config_is_checked(self, tmp_path: Path) -> None:
        """Apps: plugin.json fills in the config's defaults, and refuses what is missing."""
        schema = [{"key": "url", "required": True}, {"key": "every", "default": "30"}]
        (tmp_path / "plugin.json").write_text(json.dumps({"name": "app", "config": schema}))
        (tmp_path / "__init__.py").write_text("def process_event(event, meta): return event")

        assert AppTester(tmp_path, config={"url": "x"}).meta.config == {"url": "x", "every": "30"}
        with pytest.raises(AppConfigError, match="url"):
            AppTester(tmp_path)

    def test_functions_and_loose_modules(self) -> None:
        """Apps: a mapping of exports, or a module that nobody imported, leaves nothing behind."""
        module = ModuleType("loose")
        vars(module)["jobs"] = {"note": noting}
        before = set(sys.modules)

        assert list(AppTester(module).meta.jobs) == ["note"]
        assert list(AppTester({"jobs": {"note": noting}}).meta.jobs) == ["note"]
        assert set(sys.modules) == before

    def test_what_is_no_app(self) -> None:
        """Apps: what cannot be loaded is an error at once, and says why."""
        with pytest.raises(AppLoadError, match="no module 'no_such_app'"):
            AppTester("no_such_app")
        with pytest.raises(AppLoadError, match="neither jobs nor hooks"):
            AppTester({})

    def test_meta(self) -> None:
        """Meta: it is a real one, of the installation that was asked for."""
        app = AppTester({"jobs": {"note": noting}}, config={"a": [1]}, app_id="mine", team_id=3)

        assert (app.meta.app_id, app.meta.team_id, app.meta.config) == ("mine", 3, {"a": [1]})
        with pytest.raises(UnknownJobError, match="did you mean 'note'"):
            app.meta.jobs.notes(1)
        assert create_meta(config={"a": 1}).config == {"a": 1}
        assert create_meta().storage.get("key", 7) == 7

    def test_two_share_nothing(self) -> None:
        """Apps: two under test, of one code and id, see nothing of each other."""
        one, two = AppTester(retry_export), AppTester(retry_export)
        one.meta.cache.set("key", 1)
        one.meta.storage.set("key", 1)
        one.meta.jobs.retryRequest({}).run_now()

        assert two.meta.cache.get("key") is None
        assert two.meta.storage.get("key") is None
        two.jobs.assert_nothing_scheduled()


class TestHooks:
    """Hooks, run by a test."""

    def test_process_event(self) -> None:
        """Hooks: the event comes out, changed or dropped, and the test's own stays as it was."""

        def process_event(event: PluginEvent, meta: Meta) -> PluginEvent | None:
            event["properties"]["of"] = meta.app_id
            return None if event["event"] == "drop" else event

        app = app_of(process_event=process_event)
        event = create_event()
        before = copy.deepcopy(event)

        assert app.process_event(event) == create_event(
            uuid=event["uuid"], properties={**event["properties"], "of": "app"}
        )
        assert app.process_event(create_event(event="drop")) is None
        assert event == before

    @pytest.mark.parametrize(
        "result", [7, {"event": ""}, {"event": "x", "team_id": 2, "properties": {}}]
    )
    def test_what_it_returns_is_checked(self, result: object) -> None:
        """Hooks: what production would log and pass over is an error in the test."""
        app = app_of(process_event=lambda event, meta: result)

        with pytest.raises(EventError, match="process_event"):
            app.process_event(create_event())

    def test_what_raises_raises(self) -> None:
        """Hooks: what a hook raises reaches the test as it is, sync or async."""

        async def on_event(event: PluginEvent, meta: Meta) -> None:
            await asyncio.sleep(0)
            raise ValueError("no url")

        def process_event(event: PluginEvent, meta: Meta) -> None:
            raise KeyError("url")

        def run_every_hour(meta: Meta) -> None:
            raise RetryError("not now")

        app = app_of(process_event=process_event, on_event=on_event, run_every_hour=run_every_hour)

        with pytest.raises(KeyError, match="url"):
            app.process_event(create_event())
        with pytest.raises(ValueError, match="no url"):
            app.on_event(create_event())
        with pytest.raises(RetryError, match="not now"):
            app.run_every_hour()
        app.jobs.assert_nothing_scheduled()

    @pytest.mark.parametrize(
        ("hook", "policy"),
        [
            ("on_event", ON_RETRY_ERROR),
            ("on_snapshot", ON_RETRY_ERROR),
            ("export_events", ON_EXPORT_RETRY),
        ],
    )
    def test_retries(self, hook: str, policy: RetryPolicy) -> None:
        """Hooks: after RetryError it waits as in a worker, with what it got, and is given up."""
        seen: list[tuple[Any, timedelta]] = []

        async def busy(given: Any, meta: Meta) -> None:
            assert meta.job is None
            seen.append((copy.deepcopy(given), app.clock.now - NOON))
            given.clear()
            raise RetryError("the server is busy")

        exports: dict[str, Any] = {hook: busy}
        app = app_of(**exports)
        given: Any = [create_event(), create_event()] if hook == "export_events" else create_event()

        getattr(app, hook)(given)
        job = app.jobs.assert_scheduled(hook, payload=given, in_=(policy.first, "seconds"))
        assert (job.attempt, job.is_hook) == (1, True)
        with pytest.raises(RetriesExhaustedError, match=rf"hook '{hook}'.*the server is busy"):
            app.run_due(after=(1, "month"))

        assert policy.retries is not None
        waits = [0.0, *(policy.delay(attempt) or 0 for attempt in range(policy.retries))]
        assert [at.total_seconds() for _, at in seen] == list(accumulate(waits))
        assert all(event == given for event, _ in seen)
        assert [failed.job.name for failed in app.jobs.failed] == [hook]
        app.jobs.assert_nothing_scheduled()

    def test_a_retry_that_asks_for_a_delay(self) -> None:
        """Hooks: a delay of RetryError's own counts, and what it triggers at last runs too."""

        def on_event(event: PluginEvent, meta: Meta) -> None:
            if meta.cache.incr("runs") == 1:
                raise RetryError("not now", delay=90)
            meta.jobs.note(event["event"]).run_in(1, "second")

        app = app_of(on_event=on_event)
        app.on_event(create_event())

        app.jobs.assert_scheduled("on_event", in_=(90, "seconds"))
        names = [job.name for job in app.run_due(after=(2, "minutes"))]

        assert names == ["on_event", "note"]
        assert ran(app) == ["sign up"]

    def test_a_retry_that_fails_otherwise(self) -> None:
        """Hooks: what a hook raises when it is run again, raises in the test or is kept."""

        def export_events(events: list[PluginEvent], meta: Meta) -> None:
            raise RetryError("not now") if meta.cache.incr("runs") == 1 else KeyError("url")

        app = app_of(export_events=export_events)
        app.export_events([create_event()])

        with pytest.raises(KeyError) as raised:
            app.run_due(after=(6, "seconds"))
        assert raised.value.__notes__ == [
            "raised by hook 'export_events', which was due at 2031-01-31T12:00:06+00:00"
        ]
        assert len(app.jobs.failed) == 1

    def test_what_is_no_event_of_the_app(self) -> None:
        """Hooks: what they would never be called with is refused."""
        app = app_of(process_event=lambda event, meta: event)

        with pytest.raises(EventError, match="of team 2, and the app of team 1"):
            app.process_event(create_event(team_id=2))
        with pytest.raises(PayloadError, match="properties"):
            app.process_event(create_event(properties={"a": {1}}))
        with pytest.raises(AppError, match="has no hook on_event; it has: process_event"):
            app.on_event(create_event())

    def test_every_hook_can_be_run(self) -> None:
        """Hooks: PostHog's spelling works, and each is called with what production gives it."""
        called: list[tuple[Any, ...]] = []

        def note(name: str) -> Callable[..., Any]:
            def hook(*arguments: Any) -> Any:
                called.append((name, *arguments[:-1]))
                return arguments[0]

            return hook

        spellings = ["processEventBatch", "onSnapshot", "export_events"]
        ticks = ["run_every_minute", "runEveryHour", "run_every_day"]
        exports: dict[str, Any] = {name: note(name) for name in spellings + ticks}
        app = app_of(**exports)
        event = create_event()

        assert app.process_event_batch([event, event]) == [event, event]
        app.on_snapshot(event)
        app.export_events([event])
        app.run_every_minute()
        app.run_every_hour()
        app.run_every_day()

        assert called == [
            ("processEventBatch", [event, event]),
            ("onSnapshot", event),
            ("export_events", [event]),
            *[(name,) for name in ticks],
        ]

    def test_setup_comes_first_and_once(self) -> None:
        """Hooks: setup_plugin runs before anything else, and teardown_plugin ends what it made."""

        def setup_plugin(meta: Meta) -> None:
            meta.global_["ready"] = meta.cache.incr("setups")

        app = app_of(
            setup_plugin=setup_plugin,
            process_event=lambda event, meta: {
                **event,
                "properties": {"ready": meta.global_["ready"]},
            },
            teardown_plugin=lambda meta: meta.storage.set("torn down", meta.global_["ready"]),
        )
        app.meta.jobs.note(1).run_in(1, "day")

        for _ in range(2):
            processed = app.process_event(create_event())
            assert processed is not None
            assert processed["properties"] == {"ready": 1}
        app.teardown()

        assert app.meta.global_ == {}
        assert app.meta.storage.get("torn down") == 1
        app.jobs.assert_scheduled("note")
        assert app.setup().global_["ready"] == 2

    def test_a_setup_that_fails_is_run_again(self) -> None:
        """Hooks: what setup_plugin raises reaches the test, with its own cause, each time anew."""

        def setup_plugin(meta: Meta) -> None:
            if meta.cache.incr("setups") < 3:
                raise RetryError("not yet") from OSError("refused")

        app = app_of(setup_plugin=setup_plugin, on_event=lambda event, meta: None)

        for _ in range(2):
            with pytest.raises(RetryError, match="not yet") as raised:
                app.on_event(create_event())
            assert isinstance(raised.value.__cause__, OSError)
        app.on_event(create_event())

    def test_an_app_cannot_end_the_tests(self) -> None:
        """Hooks: an app that calls sys.exit fails as it does in a worker."""
        app = app_of(on_event=lambda event, meta: sys.exit(3))

        with pytest.raises(AppRaisedError, match=r"sys\.exit"):
            app.on_event(create_event())

    @pytest.mark.parametrize("ends", [KeyboardInterrupt, pytest.fail.Exception])
    def test_a_test_can_be_ended(self, ends: type[BaseException]) -> None:
        """Hooks: Ctrl-C, and a fake that fails the test, end it though they come in app code."""

        def end(*_: object) -> None:
            raise ends

        app = app_of(on_event=end, jobs={"end": end})

        with pytest.raises(ends):
            app.on_event(create_event())
        app.meta.jobs.end(1).run_now()
        with pytest.raises(ends):
            app.run_due()

    def test_async_tests_are_told_what_to_do(self) -> None:
        """Async: in a running loop the message names to_thread, which works."""
        app = app_of(process_event=lambda event, meta: event)

        async def test() -> None:
            with pytest.raises(PostHogJobsError, match=r"await asyncio\.to_thread"):
                app.process_event(create_event())
            assert await asyncio.to_thread(app.process_event, create_event()) == create_event()
            app.meta.jobs.note(1).run_now()
            await app.meta.cache.set("key", 1)
            with pytest.raises(PostHogJobsError, match="to_thread"):
                app.run_due()
            await asyncio.to_thread(app.run_due)

        asyncio.run(test())
        assert ran(app) == [1]

    def test_metrics_and_captured_events(self) -> None:
        """Meta: what the app records and captures can be looked at."""

        async def on_event(event: PluginEvent, meta: Meta) -> None:
            meta.metrics.seen.increment(1.5)
            for size in (3, 7, 5):
                meta.metrics.largest.max(size)
                await meta.metrics.smallest.min(size)
            await meta.posthog.capture("seen", {"plan": "free"})

        kinds = {"seen": "sum", "largest": "max", "smallest": "min", "never": "max"}
        app = app_of(on_event=on_event, metrics=kinds)

        app.on_event(create_event())
        app.on_event(create_event())

        assert app.metrics == {"seen": 3.0, "largest": 7.0, "smallest": 3.0, "never": None}
        assert [event["event"] for event in app.captured] == ["seen", "seen"]
        assert app.captured[0]["properties"]["plan"] == "free"


class TestScheduled:
    """What a test can say of the jobs that were triggered."""

    def test_what_is_there_is_found(self) -> None:
        """Scheduled: by name, payload, time and key, each of which may be left out."""
        app = app_of()
        handle = app.meta.jobs.note({"url": "x", "at": NOON}, key="k").run_in(30, "seconds")
        app.meta.jobs.nothing().run_at(NOON + timedelta(hours=1))

        found = app.jobs.assert_scheduled(
            "note", payload={"url": ANY, "at": NOON}, in_=(30, "seconds"), key="k"
        )
        app.jobs.assert_scheduled("note")
        app.jobs.assert_scheduled("nothing", payload=ABSENT, at=NOON + timedelta(hours=1), key=None)
        app.jobs.assert_not_scheduled("nothing", payload=None)
        app.jobs.assert_not_scheduled("note", in_=(31, "seconds"))

        assert (found.id, found.due, found.attempt) == (handle.id, handle.due, 0)
        assert [job.name for job in app.jobs.scheduled] == ["note", "nothing"]

    def test_a_failed_assertion_shows_what_there_is(self) -> None:
        """Scheduled: the message lists what waits, and in what the nearest differs."""
        app = app_of()
        with pytest.raises(AssertionError) as raised:
            app.jobs.assert_scheduled("note")
        assert str(raised.value) == "not scheduled: note\nscheduled: nothing"
        app.meta.jobs.note(1).run_in(30, "seconds")
        app.meta.jobs.note(2, key="k").run_in(1, "month")
        app.meta.jobs.nothing().run_now()

        with pytest.raises(AssertionError) as raised:
            app.jobs.assert_scheduled("note", payload=2, in_=(30, "seconds"), key="k")

        assert str(raised.value) == (
            "not scheduled: note, payload=2, due in 0:00:30 at 2031-01-31T12:00:30+00:00, key='k'\n"
            "scheduled: \n"
            "  nothing, without payload, due in 0:00:00 at 2031-01-31T12:00:00+00:00\n"
            "  note, payload=1, due in 0:00:30 at 2031-01-31T12:00:30+00:00\n"
            "  note, payload=2, due in 28 days, 0:00:00 at 2031-02-28T12:00:00+00:00, key='k'"
            "   <- differs in due"
        )
        with pytest.raises(AssertionError, match="should not be: note"):
            app.jobs.assert_not_scheduled("note", payload=1)
        with pytest.raises(AssertionError, match="nothing should be scheduled"):
            app.jobs.assert_nothing_scheduled()

    def test_bad_times_are_errors(self) -> None:
        """Scheduled: a time that no job can have is an error, and not just not found."""
        app = app_of()
        with pytest.raises(NaiveDatetimeError):
            app.jobs.assert_scheduled("note", at=datetime(2031, 1, 1))  # noqa: DTZ001
        with pytest.raises(TypeError, match="not both"):
            app.jobs.assert_scheduled("note", in_=(1, "day"), at=NOON)

    def test_payloads_travel(self) -> None:
        """Scheduled: a payload arrives as a copy, equal, and is refused as in production."""
        app = app_of()
        payload = {"at": NOON, "raw": b"\xff", "list": [1.5, None]}
        app.meta.jobs.note(payload).run_now()
        app.run_due()

        assert ran(app) == [payload]
        assert ran(app)[0] is not payload
        with pytest.raises(PayloadError, match="tuple"):
            app.meta.jobs.note((1, 2))
        with pytest.raises(PayloadTooLargeError, match="over the limit of 1048576"):
            app.meta.jobs.note("x" * 2**20)


class TestSteering:
    """Keys, cancel and reschedule, as Redis' schedule has them."""

    def test_keys(self) -> None:
        """Keys: a second job replaces the one that waits, or with keep is nothing."""
        app = app_of()
        first = app.meta.jobs.note(1, key="k").run_in(1, "hour")
        kept = app.meta.jobs.note(2, key="k", if_waiting="keep").run_in(2, "hours")
        assert (kept.id, kept.due) == (first.id, first.due)
        app.meta.jobs.note(3, key="other").run_in(3, "hours")
        app.meta.jobs.note(4, key="k").run_in(4, "hours")
        app.meta.jobs.nothing(key="k").run_in(1, "minute")

        app.run_due(after=(1, "day"))

        assert ran(app) == ["nothing", 3, 4]

    def test_a_key_is_free_when_its_job_is_due(self) -> None:
        """Keys: what is due does not wait, so a job can trigger itself under its own key."""

        def again(payload: int, meta: Meta) -> None:
            noting(payload, meta)
            if payload < 3:
                meta.jobs.again(payload + 1, key="k", if_waiting="keep").run_in(1, "hour")

        app = app_of(jobs={"again": again})
        app.meta.jobs.again(1, key="k").run_now()
        app.meta.jobs.again(2, key="k").run_in(1, "hour")

        app.run_due(after=(1, "day"))

        assert ran(app) == [1, 2, 3]

    def test_cancel(self) -> None:
        """Cancel: what waits or is queued does not run, and the answer says which it was."""
        app = app_of()
        waits = app.meta.jobs.note(1).run_in(1, "hour")
        queued = app.meta.jobs.note(2).run_now()
        ran_job = app.meta.jobs.note(3).run_in(1, "minute")
        app.run_due(after=(0, "seconds"))  # nothing but what is due now
        promoted = app.meta.jobs.note(4).run_in(2, "minutes")
        again = app.meta.jobs.note(5).run_now()
        assert again.cancel() is Steered.UNKNOWN
        app.run_due(after=(1, "minute"))
        app.clock.turn(1, "minute")

        assert waits.cancel() is Steered.CANCELLED
        assert waits.cancel() is Steered.UNKNOWN
        assert queued.cancel() is Steered.UNKNOWN
        assert ran_job.cancel() is Steered.PROMOTED
        assert promoted.cancel() is Steered.PROMOTED
        app.run_due(after=(1, "day"))
        assert ran(app) == [2, 3]

    def test_reschedule(self) -> None:
        """Reschedule: what waits moves, to now too; what has left the schedule does not."""
        app = app_of()
        later = app.meta.jobs.note("later").run_in(1, "minute")
        sooner = app.meta.jobs.note("sooner", key="k").run_in(1, "hour")
        queued = app.meta.jobs.note("queued").run_now()

        assert later.reschedule(NOON + timedelta(hours=2)) is Steered.RESCHEDULED
        assert sooner.reschedule(NOON - timedelta(hours=2)) is Steered.QUEUED
        assert queued.reschedule(NOON + timedelta(hours=2)) is Steered.UNKNOWN
        assert sooner.reschedule(NOON + timedelta(hours=2)) is Steered.PROMOTED
        app.meta.jobs.note("second", key="k", if_waiting="keep").run_in(1, "hour")
        app.run_due(after=(1, "day"))

        assert ran(app) == ["sooner", "queued", "second", "later"]


class TestRunDue:
    """Turning the clock."""

    def test_in_order_with_what_jobs_trigger(self) -> None:
        """Run due: in the order of due times, what jobs trigger too, the clock at each one's."""

        async def chain(payload: int, meta: Meta) -> None:
            noting((payload, app.clock.now), meta)
            if payload:
                meta.jobs.chain(payload - 1).run_in(1, "month")  # on purpose not awaited

        app = app_of(jobs={"chain": chain})
        app.meta.jobs.chain(2).run_now()
        app.meta.jobs.note("between").run_in(40, "days")

        runs = app.run_due(after=(1, "quarter"))

        assert ran(app) == [
            (2, NOON),
            (1, datetime(2031, 2, 28, 12, tzinfo=UTC)),
            "between",
            (0, datetime(2031, 3, 28, 12, tzinfo=UTC)),
        ]
        assert [job.name for job in runs] == ["chain", "chain", "note", "chain"]
        assert app.clock.now == datetime(2031, 4, 30, 12, tzinfo=UTC)

    def test_nothing_early(self) -> None:
        """Run due: what is due a moment later waits."""
        app = app_of()
        app.meta.jobs.note(1).run_in(1001, "milliseconds")

        assert app.run_due(after=(1, "second")) == []
        assert [job.name for job in app.run_due(after=(1, "millisecond"))] == ["note"]

    def test_retries(self) -> None:
        """Run due: RetryError runs the job again after 5 and 10 s, with the payload as it was."""

        def twice(payload: list[int], meta: Meta) -> None:
            noting((app.clock.now - NOON).total_seconds(), meta)
            payload.append(2)
            if len(ran(app)) < 3:
                raise RetryError("not now")
            noting(payload, meta)

        app = app_of(jobs={"twice": twice})
        app.meta.jobs.twice([1]).run_now()

        app.run_due()
        assert app.jobs.assert_scheduled("twice", in_=(5, "seconds")).attempt == 1
        app.run_due(after=(1, "minute"))

        assert ran(app) == [0, 5, 15, [1, 2]]
        assert app.jobs.failed == []
        app.jobs.assert_nothing_scheduled()

    def test_retries_that_run_out(self) -> None:
        """Run due: after the last of its retries a job has failed, and the test is told."""

        def never(meta: Meta) -> None:
            noting((app.clock.now - NOON).total_seconds(), meta)
            raise RetryError("the server is busy")

        app = app_of(jobs={"never": never})
        app.meta.jobs.never().run_now()

        with pytest.raises(RetriesExhaustedError, match=r"'never'.*the server is busy"):
            app.run_due(after=(1, "day"))

        assert ran(app) == [0, 5, 15, 35, 75, 155]
        assert [failed.job.name for failed in app.jobs.failed] == ["never"]

    def test_a_job_that_fails(self) -> None:
        """Run due: a job's error raises in the test, at its time, or is kept; the rest run."""

        async def fail(meta: Meta) -> None:
            raise ZeroDivisionError("no")

        app = app_of(jobs={"fail": fail})
        for _ in range(2):
            app.meta.jobs.fail().run_in(1, "hour")
        app.meta.jobs.note(1).run_in(2, "hours")

        with pytest.raises(ZeroDivisionError) as raised:
            app.run_due(after=(1, "day"))
        assert raised.value.__notes__ == [
            "raised by job 'fail', which was due at 2031-01-31T13:00:00+00:00"
        ]
        assert app.clock.now == NOON + timedelta(hours=1)
        app.run_due(after=(1, "day"), raises=False)

        assert ran(app) == [1]
        assert [type(failed.error) for failed in app.jobs.failed] == [ZeroDivisionError] * 2

    def test_an_unawaited_call_that_fails_fails_the_job(self) -> None:
        """Run due: in an async job, what is not awaited and fails is the job's failure."""

        async def forgetful(meta: Meta) -> None:
            meta.cache.incr("list")

        app = app_of(jobs={"forgetful": forgetful})
        app.meta.cache.lpush("list", 1)
        app.meta.jobs.forgetful().run_now()

        with pytest.raises(PostHogJobsError, match="another kind"):
            app.run_due()

    def test_jobs_without_an_end(self) -> None:
        """Run due: a job that triggers itself with run_now for ever is an error, and no hang."""
        app = app_of(jobs={"endless": lambda meta: meta.jobs.endless().run_now()})
        app.meta.jobs.endless().run_now()

        with pytest.raises(PostHogJobsError, match=r"1000 jobs.*'endless'.*use run_in"):
            app.run_due()

    def test_times_to_live(self) -> None:
        """Run due: a cached value ends with the turned clock."""
        app = app_of()
        app.meta.cache.set("key", 1, ttl=60)

        app.run_due(after=(59, "seconds"))
        assert app.meta.cache.get("key") == 1
        app.clock.turn(1, "second")
        assert app.meta.cache.get("key") is None

    def test_the_clock_starts_at_present(self) -> None:
        """Clock: unless it is set, it agrees with the time that app code asks Python for."""
        app = AppTester({"jobs": {"note": noting}})
        app.meta.jobs.note(1).run_at(datetime.now(UTC) + timedelta(hours=1))

        assert app.run_due(after=(59, "minutes")) == []
        assert len(app.run_due(after=(2, "minutes"))) == 1


seconds, places = st.integers(0, 50), st.integers(0, 5)
some_step = st.one_of(
    st.tuples(st.just("run_in"), seconds),
    st.tuples(st.just("cancel"), places),
    st.tuples(st.just("reschedule"), places, seconds),
    st.tuples(st.just("run_due"), seconds),
)


@given(st.lists(some_step, max_size=30))
def test_any_steps_keep_order(steps: list[tuple[Any, ...]]) -> None:
    """Run due: whatever is sent, moved and cancelled, each job runs once, when due, in order."""
    starts: list[tuple[int, datetime]] = []

    def start(payload: int, meta: Meta) -> None:
        starts.append((payload, app.clock.now))

    app = app_of(jobs={"start": start})
    handles: list[JobHandle] = []
    due: dict[int, datetime] = {}
    for step, number, *at in steps:
        moment = app.clock.now + timedelta(seconds=(at or [number])[0])
        if step == "run_in":
            due[len(handles)] = moment
            handles.append(app.meta.jobs.start(len(handles)).run_in(number, "seconds"))
        elif step == "run_due":
            app.run_due(after=(number, "seconds"))
        elif step == "cancel" and number < len(handles):
            handles[number].cancel()
            if number not in dict(starts):
                due.pop(number, None)
        elif number < len(handles) and handles[number].reschedule(moment).waited:
            due[number] = moment
    app.run_due(after=(100, "seconds"))

    assert sorted(starts) == sorted(due.items())
    assert [moment for _, moment in starts] == sorted(due.values())
    app.jobs.assert_nothing_scheduled()
