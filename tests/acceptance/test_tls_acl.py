"""Redis with TLS, client certificates and a user with the rights that the docs name, no more."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from kombu import pools

from posthog_jobs.broker.embedded import find_binary
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import BrokerUnavailableError
from posthog_jobs.jobs.message import Steered
from tests.conftest import ROOT
from tests.docs.pages import blocks
from tests.notes import wait_for
from tests.servers.nodes import HOST, RedisProcess, WorkerProcess, free_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = "correct-horse"
APPS = {"recorder": "tests.samples.recorder", "poison": "tests.samples.poison"}

#: What the page on production says, behind `user jobs on >password`.
RIGHTS = " ".join(
    next(
        block.text.split(maxsplit=4)[4]
        for block in blocks(ROOT / "docs" / "howto" / "run-in-production.md")
        if "rights" in block.marks
    ).split()
)


def certificates(folder: Path) -> None:
    """Make two authorities, and a server's and a client's certificate of the first."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "rsa:2048", "-nodes", "-days", "1")
    for name in ("ca", "other"):
        openssl("req", "-x509", *new, "-subj", f"/CN={name}",
                "-addext", "keyUsage=critical,keyCertSign",  # which Python 3.13 asks for
                "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    for name in ("server", "client"):
        openssl("req", "-x509", *new, "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-addext", f"subjectAltName=IP:{HOST}", "-addext", "basicConstraints=CA:FALSE",
                "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip


class Site:
    """A server with TLS and two users, and apps and workers that speak to it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def url(self, user: str = "jobs", ca: str = "ca", client: str | None = "client") -> str:
        url = f"rediss://{user}:{PASSWORD}@{HOST}:{self.port}/0?ssl_cert_reqs=required"
        url += f"&ssl_ca_certs={self.folder}/{ca}.pem"
        if client:
            url += f"&ssl_certfile={self.folder}/{client}.pem"
            url += f"&ssl_keyfile={self.folder}/{client}.key"
        return url

    def config(self, **url: Any) -> dict[str, Any]:
        return {"broker_url": self.url(**url), "posthog_jobs_apps": APPS}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, which makes the certificates")
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    certificates(folder)
    (folder / "users.acl").write_text(
        f"user default off\nuser jobs on >{PASSWORD} {RIGHTS}\n"
        f"user nobody on >{PASSWORD} -@all +@connection\n"
        f"user admin on >{PASSWORD} ~* &* +@all\n"
    )
    options = {
        "--port": "0", "--tls-port": str(port), "--bind": HOST, "--dir": str(folder), "--save": "",
        "--tls-cert-file": "server.pem", "--tls-key-file": "server.key",
        "--tls-ca-cert-file": "ca.pem", "--tls-auth-clients": "yes", "--aclfile": "users.acl",
    }  # fmt: skip
    words = [word for option in options.items() for word in option]
    server = RedisProcess(folder, [find_binary(), *words], port=port)
    try:
        server.ready()
    except Exception:
        if "Failed finding TLS support" in server.logs():
            pytest.skip("this server is built without TLS")
        raise
    try:
        yield Site(folder, port)
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _no_connections_of_others() -> Iterator[None]:
    """Kombu's pools of a process tell connections apart by user and server, not by certificate."""
    pools.reset()
    yield
    pools.reset()


@pytest.fixture
def start_worker(site: Site, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    started = []

    def start(pool: str, **url: Any) -> WorkerProcess:
        config = "".join(f"{name} = {value!r}\n" for name, value in site.config(**url).items())
        (tmp_path / "celeryconfig.py").write_text(config)

        command = [sys.executable, "-m", "celery", "-A", "posthog_jobs", "worker", "-P", pool]
        command += ["-c", "2", "-l", "INFO", "-n", "w@%h", "-E"]
        worker = WorkerProcess(tmp_path, command, {"PYTHONPATH": str(ROOT)})
        started.append(worker)
        return worker

    yield start
    for worker in started:
        print(worker.logs())  # noqa: T201  # pytest shows it with a failure
        worker.kill()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_documented_rights_suffice(
    site: Site, start_worker: Callable[..., WorkerProcess], pool: str
) -> None:
    """Over TLS, as that user: jobs run, wait, are moved and cancelled, fail and are replayed."""
    worker = start_worker(pool)
    worker.ready()
    app = PostHogJobs(config_source=site.config())
    meta = app.meta_for("recorder")
    meta.cache.expire("notes", 0.001)
    meta.jobs.record("now").run_now()
    meta.jobs.record("soon").run_in(300, "milliseconds")
    found = wait_for(app, "record", 2)
    assert {note["payload"] for note in found} == {"now", "soon"}
    later = meta.jobs.record("later", key="k").run_in(1, "day")
    assert app.schedule.get(later.id) is not None
    assert app.schedule.count() == 1
    assert app.schedule.forecast().total == 1
    assert app.schedule.reschedule(later.id, datetime.now(UTC) + timedelta(days=2)).waited
    assert app.schedule.cancel(later.id) is Steered.CANCELLED
    meta.storage.set("a", 1)
    assert meta.storage.get("a") == 1
    app.meta_for("poison").jobs.fail(1).run_now()
    poll("the failed job", lambda: app.failures.count() == 1)
    (failed,) = app.failures.list().jobs
    app.failures.replay(failed.id)
    poll("the replayed one", lambda: app.failures.list().jobs[:1] != ())
    app.failures.discard_all()
    app.apps.install("tests.samples.recorder", id="third", team_id=7)
    app.meta_for("third").jobs.record_nothing().run_now()
    wait_for(app, "record_nothing", app_id="third")
    app.apps.uninstall("third", cancel_jobs=True, purge=True)
    assert poll("an answer", app.control.inspect(timeout=2).ping)
    app.capture({"event": "x"})
    wait_for(app, "on_event")
    worker.stop()
    log = worker.logs()
    assert "NOPERM" not in log
    assert "no permissions" not in log
    assert PASSWORD not in log


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ({"ca": "other"}, "certificate verify failed"),
        ({"client": None}, ""),
        ({"user": "nobody"}, "no permissions"),
        ({"user": "stranger"}, "invalid username-password"),
    ],
)
def test_who_may_not_is_told(site: Site, url: dict[str, Any], why: str) -> None:
    """Of another authority, without certificate, rights or account: an error without password."""
    app = PostHogJobs(config_source={**site.config(**url), "posthog_jobs_enqueue_timeout": 1})
    with pytest.raises(BrokerUnavailableError) as caught:
        app.meta_for("recorder").jobs.record(1).run_now()
    assert why in str(caught.value)
    assert PASSWORD not in str(caught.value)
    with pytest.raises(BrokerUnavailableError) as caught:
        app.schedule.count()
    assert why in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_worker_without_rights_says_so(
    site: Site, start_worker: Callable[..., WorkerProcess]
) -> None:
    """A worker whose user may do nothing says what it may not, and does not fill its log."""
    worker = start_worker("solo", user="nobody")
    poll("a word on rights", lambda: "no permissions" in worker.logs())
    worker.stop()
    assert worker.logs().count("Traceback") <= 3
    assert PASSWORD not in worker.logs()
