"""`app.apps`: what operators change, against a real Redis."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.apps import loading
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    AppConfigError,
    AppDisabledError,
    AppLoadError,
    AppRemovedError,
    ConfigurationError,
    InstallError,
    PayloadError,
    StoreUnavailableError,
    UnknownAppError,
)
from posthog_jobs.redaction import MASK
from tests.conftest import APPS
from tests.servers.nodes import RedisProcess, closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from posthog_jobs.operate.apps import Apps

MODULE = "tests.samples.recorder"
SECRET = "hunter2"


@pytest.fixture
def apps(idle_app: PostHogJobs) -> Apps:
    return idle_app.apps


@pytest.fixture
def other(idle_app: PostHogJobs) -> PostHogJobs:
    """Another process' app, as far as the store is concerned."""
    return PostHogJobs(
        config_source={"broker_url": idle_app.conf.broker_url, "posthog_jobs_apps": APPS}
    )


def stored(server: RedisProcess) -> dict[bytes, bytes]:
    assert server.client is not None
    return dict(server.client.hgetall("posthog_jobs:apps"))


def test_install(idle_app: PostHogJobs, other: PostHogJobs) -> None:
    """install: what was said is there, in this process at once and in others within a second."""
    other.apps.list()
    version = idle_app.apps.install(
        MODULE, id="new", config={"url": "x"}, team_id=3, order=-1
    ).entry.version

    assert dict(idle_app.meta_for("new").config) == {"url": "x"}
    meta = other.meta_for("new")  # asked for an id that it does not know, it looks at once
    assert (meta.team_id, dict(meta.config)) == (3, {"url": "x"})
    entries = [installed.entry for installed in other.apps.list()]
    assert [entry.id for entry in entries] == ["new", "recorder", "second"], "by order"
    assert [entry.is_stored for entry in entries] == [True, False, False]
    assert entries[0].version == version


def test_a_change_is_seen_elsewhere_within_a_second(
    idle_app: PostHogJobs, other: PostHogJobs
) -> None:
    """A process that is no worker sees a change within a second, and at most two calls a second."""
    idle_app.apps.install(MODULE, id="new", config={"n": 0})
    assert other.meta_for("new").config["n"] == 0

    for n in range(1, 3):
        idle_app.apps.configure("new", {"n": n})
        changed = time.monotonic()
        poll("the second is over", lambda changed=changed: time.monotonic() > changed + 1)
        assert other.meta_for("new").config["n"] == n


def test_configure_keeps_what_it_does_not_name(apps: Apps) -> None:
    """configure: named fields change, None removes one, the rest of the installation stays."""
    before = apps.install(MODULE, id="new", config={"a": "1", "b": "2"}, team_id=3, order=4).entry

    after = apps.configure("new", {"b": None, "c": [1, {"d": None}]}, order=5).entry

    assert after.config == {"a": "1", "c": [1, {"d": None}]}
    assert (after.team_id, after.order, after.enabled) == (3, 5, True)
    assert after.version > before.version
    assert after.since == before.since
    assert apps.configure("new", {"a": "1"}).entry == after, "no change is no new version"


def test_configure_loads_and_checks_once(
    idle_app: PostHogJobs, other: PostHogJobs, tmp_path: Path
) -> None:
    """configure: a process that knew nothing of an app imports it once, and checks one config."""
    (tmp_path / "counted.py").write_text("jobs = {'a': lambda meta: None}\n")
    source = str(tmp_path / "counted.py")
    idle_app.apps.install(source, id="counted")
    apps = other.apps
    calls: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_qualname
        loads = name == "load_app" and frame.f_locals["source"] == source
        if event == "call" and (loads or name == "ConfigSchema.check"):
            calls.append(name)

    sys.setprofile(profile)
    try:
        apps.configure("counted", {"n": 1})
    finally:
        sys.setprofile(None)

    assert calls == ["load_app", "ConfigSchema.check"]
    assert other.meta_for("counted").config["n"] == 1


def test_racing_operators_lose_no_change(idle_app: PostHogJobs) -> None:
    """Two operators who change one installation at once never overwrite each other's change."""
    idle_app.apps.install(MODULE, id="new")
    clients = [
        PostHogJobs(config_source={"broker_url": idle_app.conf.broker_url}) for _ in range(4)
    ]

    def change(number: int) -> None:
        for n in range(10):
            clients[number].apps.configure("new", {f"{number}-{n}": "x"})

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)

    assert len(idle_app.apps.get("new").entry.config) == 40


def test_disable_and_enable(idle_app: PostHogJobs, apps: Apps) -> None:
    """disable: its jobs can be called by nobody; the message says how to enable it again."""
    apps.install(MODULE, id="new")

    assert not apps.disable("new").entry.enabled
    with pytest.raises(AppDisabledError, match="celery -A posthog_jobs apps enable new"):
        idle_app.meta_for("new")
    assert apps.enable("new").definition is not None
    assert idle_app.meta_for("new").app_id == "new"


def test_uninstall_leaves_a_tombstone(idle_app: PostHogJobs, apps: Apps) -> None:
    """uninstall: its jobs are told so, its config is gone, and it can be installed again."""
    apps.install(MODULE, id="new", config={"token": SECRET})

    apps.uninstall("new")

    with pytest.raises(AppRemovedError, match="'new' was uninstalled; to run its jobs, install it"):
        idle_app.meta_for("new")
    with pytest.raises(AppRemovedError):
        apps.get("new")
    with pytest.raises(AppRemovedError):
        apps.enable("new")
    assert "new" not in [installed.entry.id for installed in apps.list()]
    assert SECRET not in repr(apps._store.read().entries)
    apps.install(MODULE, id="new")
    assert idle_app.meta_for("new").config == {}


def test_uninstall_asks_for_the_waiting_jobs(idle_app: PostHogJobs, apps: Apps) -> None:
    """uninstall: with waiting jobs it wants to be told; it cancels those of this app id alone."""
    apps.install(MODULE, id="new")
    for app_id in ("new", "new", "recorder"):
        idle_app.meta_for(app_id).jobs.record(1).run_in(1, "hour")

    with pytest.raises(InstallError, match=r"2 waiting jobs.*--cancel-jobs.*--keep-jobs"):
        apps.uninstall("new")
    assert apps.get("new").entry.enabled
    assert apps.uninstall("new", cancel_jobs=True).cancelled == 2
    assert idle_app.schedule.count() == 1


def test_uninstall_and_the_events_to_export(idle_app: PostHogJobs, apps: Apps) -> None:
    """uninstall: what waits for export_events is forgotten with the jobs, or kept with them."""
    redis, keys = idle_app._broker.connected()
    for app_id in ("kept", "dropped"):
        apps.install("tests.samples.exporter", id=app_id, team_id=9)
    idle_app.runtime.export({"event": "sign up", "properties": {}, "team_id": 9})

    assert apps.uninstall("kept", cancel_jobs=False).cancelled is None
    assert apps.uninstall("dropped", cancel_jobs=True).cancelled == 1

    assert redis.exists(*keys.export("kept")) == 2
    assert redis.exists(*keys.export("dropped")) == 0
    idle_app.runtime.tear_down()  # or it would look for the server when the tests are over


def test_uninstall_keeps_jobs(idle_app: PostHogJobs, apps: Apps) -> None:
    """uninstall: jobs that are to be kept wait on."""
    apps.install(MODULE, id="new")
    idle_app.meta_for("new").jobs.record(1).run_in(1, "hour")

    assert apps.uninstall("new", cancel_jobs=False).cancelled is None
    assert idle_app.schedule.count(app_id="new") == 1


def test_purge(idle_app: PostHogJobs, apps: Apps) -> None:
    """uninstall: cache and storage go with purge alone, also later, and no other app's ever."""
    for app_id in ("new", "new.2"):
        apps.install(MODULE, id=app_id)
        meta = idle_app.meta_for(app_id)
        meta.storage.set("a", 1)
        for n in range(3):
            meta.cache.set(f"{n}", 1)
    others = idle_app.meta_for("new.2")

    assert apps.uninstall("new").purged is None
    assert apps.uninstall("new", purge=True).purged == 4

    assert (others.storage.get("a"), others.cache.get("0")) == (1, 1)
    apps.install(MODULE, id="new")
    meta = idle_app.meta_for("new")
    assert (meta.storage.get("a"), meta.cache.get("0")) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"id": "taken"},
            InstallError,
            "'taken' is installed already, from 'tests.samples.recorder'",
        ),
        ({"id": "recorder"}, InstallError, "change it in celeryconfig.py"),
        ({"id": "a b"}, ConfigurationError, "the app id 'a b'"),
        ({"id": 5}, ConfigurationError, "the app id 5"),
        ({"config": "x"}, ConfigurationError, "'config'] is of type str"),
        ({"config": {"a": {1, 2}}}, PayloadError, r"config\['a'\] is of type set"),
        ({"team_id": "2"}, ConfigurationError, "'team_id'] is of type str"),
        ({"order": 1.5}, ConfigurationError, "'order'] is of type float"),
        ({"enabled": "no"}, ConfigurationError, "'enabled'] is of type str"),
        ({"module": "no.such.module"}, AppLoadError, "there is no module 'no.such.module'"),
        ({"module": ""}, ConfigurationError, "names no module"),
        (
            {"module": "tests.samples.exporter", "config": {"exportEventsBufferSeconds": "soon"}},
            AppConfigError,
            "config field exportEventsBufferSeconds is not a number; use one from 1 to 600",
        ),
        ({"config": {"token": MASK}}, AppConfigError, "'token' is a mask, but has no value that"),
        ({"module": "tests.samples.raises"}, AppLoadError, "importing 'tests.samples.raises'"),
    ],
)
def test_what_cannot_be_installed(
    apps: Apps,
    idle_server: RedisProcess,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """install: bad input is refused where it enters, by its name; nothing is stored."""
    apps.install(MODULE, id="taken")
    before = stored(idle_server)

    with pytest.raises(error, match=message):
        apps.install(**{"module": MODULE, "id": "new", **arguments})
    assert stored(idle_server) == before


def test_a_config_that_the_app_does_not_take(
    apps: Apps, idle_server: RedisProcess, tmp_path: Path
) -> None:
    """install, configure: plugin.json decides what a config may be; a change keeps the secrets."""
    (tmp_path / "plugin.json").write_text(
        '{"name": "kettle", "main": "main.py", "config": ['
        '{"key": "url", "required": true}, {"key": "token", "secret": true}]}'
    )
    (tmp_path / "main.py").write_text("jobs = {'a': lambda meta: None}")
    with pytest.raises(AppConfigError, match="'url' is required"):
        apps.install(str(tmp_path), id="new")
    installed = apps.install(str(tmp_path), id="new", config={"url": "x", "token": SECRET})
    before = stored(idle_server)
    with pytest.raises(AppConfigError, match="unknown field 'more'"):
        apps.configure("new", {"more": "1"})
    assert stored(idle_server) == before

    changed = apps.configure("new", {**installed.masked_config, "url": "y"})

    assert changed.entry.config == {"url": "y", "token": SECRET}
    assert SECRET not in f"{changed} {changed.masked_config}"


@pytest.mark.parametrize("call", ["get", "configure", "enable", "disable", "uninstall"])
def test_an_unknown_app(apps: Apps, call: str) -> None:
    """An id that nobody installed is refused by every call, and so is one of the configuration."""
    with pytest.raises(UnknownAppError, match="no app is installed under the id 'nowhere'"):
        getattr(apps, call)("nowhere")
    if call != "get":
        with pytest.raises(InstallError, match=r"by posthog_jobs_apps; change it in celeryconfig"):
            getattr(apps, call)("recorder")


def test_the_configuration_wins(idle_app: PostHogJobs, caplog: pytest.LogCaptureFixture) -> None:
    """An id that is in both: the configuration counts, and the log says so once."""
    url = idle_app.conf.broker_url
    PostHogJobs(config_source={"broker_url": url}).apps.install(
        MODULE, id="recorder", config={"greeting": "from the store"}
    )

    for _ in range(2):
        assert [app.entry.id for app in idle_app.apps.list()] == ["recorder", "second"]
    assert idle_app.meta_for("recorder").config == {"greeting": "hello"}
    assert caplog.text.count("is in posthog_jobs_apps and in the store") == 1


def test_two_apps_of_one_name(apps: Apps, tmp_path: Path) -> None:
    """install: two apps whose tasks would have the same names cannot be there at once."""
    (tmp_path / "recorder.py").write_text("jobs = {'a': lambda meta: None}")

    with pytest.raises(AppLoadError, match=r"the app name 'recorder' of .* is taken by"):
        apps.install(str(tmp_path / "recorder.py"), id="new")


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A server that the test may kill."""
    for server in RedisProcess.launch(tmp_path).serve():
        assert isinstance(server, RedisProcess)
        yield server


def test_redis_is_away(mortal_server: RedisProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Redis away: what was installed goes on, the log says it once, and once that it is back."""
    caplog.set_level(logging.INFO)
    app = PostHogJobs(config_source={"broker_url": mortal_server.url})
    app.apps.install(MODULE, id="new")
    mortal_server.kill()

    for _ in range(3):
        assert app.meta_for("new").app_id == "new"
        time.sleep(0.6)  # as long as it keeps from asking again
    with pytest.raises(StoreUnavailableError, match="Redis does not answer the installed apps"):
        app.apps.install(MODULE, id="other")
    assert caplog.text.count("what was installed before goes on") == 1

    mortal_server.start()
    mortal_server.ready()
    app.apps.install(MODULE, id="other")  # in an empty store: versions go on growing all the same
    assert app.meta_for("other").app_id == "other"
    assert caplog.text.count("can be read again") == 1


def test_no_redis_from_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """Redis away: the apps of the configuration run without the store."""
    url = f"redis://127.0.0.1:{closed_port()}/0"
    app = PostHogJobs(config_source={"broker_url": url, "posthog_jobs_apps": APPS})

    for _ in range(2):
        assert app.meta_for("recorder").app_id == "recorder"
    assert caplog.text.count("Redis does not answer") == 1


def test_an_entry_that_is_none(apps: Apps, idle_server: RedisProcess) -> None:
    """What cannot be read in the store harms no other app, and can be installed again."""
    apps.install(MODULE, id="new")
    assert idle_server.client is not None
    idle_server.client.hset(
        "posthog_jobs:apps", mapping={"bad": b"\xff{", "worse": "[]", ":version": 2**42}
    )

    assert [app.entry.id for app in apps.list()] == ["recorder", "second", "new"]
    with pytest.raises(UnknownAppError, match="'bad'"):
        apps.enable("bad")
    assert apps.install(MODULE, id="bad").entry.version == 2**42 + 1


def test_a_module_that_breaks(idle_app: PostHogJobs, other: PostHogJobs, tmp_path: Path) -> None:
    """An upgrade that breaks an app: it is broken, others run; it is tried again with patience."""
    file = tmp_path / "kettle.py"
    file.write_text("jobs = {'boil': lambda meta: None}")
    idle_app.apps.install(str(file), id="kettle")
    file.write_text("raise RuntimeError('upgraded')")
    del loading._loaded[str(file)]  # as in a process that starts now

    for _ in range(2):
        with pytest.raises(AppLoadError, match=r"app id 'kettle': importing .* upgraded"):
            other.meta_for("kettle")
    assert other.meta_for("recorder").app_id == "recorder"
    assert other.apps.disable("kettle").error is None
    file.write_text("jobs = {'boil': lambda meta: None}")
    other.apps.enable("kettle")
    assert "boil" in dir(other.meta_for("kettle").jobs)
