"""Stock Celery works beside ours, on the same Redis and in the same process."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis

from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.transport import install
from posthog_jobs.broker.transport.transport import SentinelTransport, Transport
from posthog_jobs.operate.doctor import warnings_for
from tests.pace import Pace
from tests.servers.nodes import free_port
from tests.servers.processes import Server, environment, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.processes import Site

URLS: dict[str, Any] = {
    "redis://localhost": Transport,
    "rediss://localhost?ssl_cert_reqs=none": Transport,
    "redis+socket:///tmp/none": Transport,
    "sentinel://localhost": SentinelTransport,
}


@pytest.mark.parametrize("url", URLS)
def test_switched_on_by_our_option_alone(url: str) -> None:
    """Our classes serve a connection with our option, kombu's own any other one."""
    install()
    install()
    ours: Any = Connection(url, transport_options={"posthog_jobs": True}).transport
    stock: Any = Connection(url).transport
    assert type(ours) is URLS[url]
    assert type(stock) is type(ours).stock
    assert stock.Channel in (kombu_redis.Channel, kombu_redis.SentinelChannel)
    assert type(stock.cycle) is kombu_redis.MultiChannelPoller
    assert ours.client.as_uri().startswith(url.partition("://")[0])


def test_stock_and_ours_share_queues(site: Site) -> None:
    """Either worker runs what either producer sends; `LLEN` shows the backlog."""
    ours, stock = site.app(), site.app(stock=True)
    for worker_is_stock in (False, True):
        ours.send_task("run", args=["from ours"])
        stock.send_task("run", args=["from stock"])
        assert site.redis.llen("celery") == 2
        worker = site.worker("solo", stock=worker_is_stock)
        until(lambda: sorted(site.noted()) == ["from ours", "from stock"])
        worker.stop()
        site.notes.flushall()


def test_ours_promotes_for_stock_workers(site: Site) -> None:
    """What waits in our schedule reaches a queue that only stock workers consume."""
    site.worker("solo", "-Q", "ours")
    site.worker("solo", "-Q", "theirs", stock=True)
    site.app().send_task("run", args=["later"], queue="theirs", countdown=0.5)
    until(lambda: site.noted() == ["later"])


def test_what_stock_workers_left_is_restored(site: Site) -> None:
    """A job that a killed stock worker had not acknowledged runs on ours, by stock's timeout."""
    stock = site.worker("solo", stock=True)
    site.app(stock=True).send_task("hold", args=["left"])
    until(lambda: site.noted("started"))
    stock.kill()
    site.let_go()
    assert site.redis.hlen("unacked") == 1
    site.worker("solo", stock_visibility_timeout=1, unacked_restore_interval=0.5)
    until(lambda: site.noted() == ["left"])
    until(lambda: not site.redis.exists("unacked", "unacked_index"))


def test_stock_workers_long_jobs_are_left_alone(site: Site) -> None:
    """Our short lease says nothing about what stock workers hold."""
    site.worker("solo", "-Q", "a", stock=True)
    site.worker("solo", "-Q", "a", visibility_timeout=1, unacked_restore_interval=0.2)
    stock = site.app(stock=True)
    for number in range(2):
        stock.send_task("slow", args=[number, 2], queue="a")
    until(lambda: len(site.noted()) == 2)
    assert sorted(site.noted("started")) == [0, 1]


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_priority_and_several_queues(site: Site, pool: str) -> None:
    """Jobs of all priorities and queues run, the most urgent first, delayed ones too."""
    app = site.app()
    for queue in ("a", "b"):
        for priority in (9, 0, 6):
            app.send_task("where", queue=queue, priority=priority)
            app.send_task("where", queue=queue, priority=priority, countdown=0.01)
    site.worker(pool, "-Q", "a,b", "-c1", "--prefetch-multiplier", "1")
    ran = until(lambda: found if len(found := site.noted()) == 12 else None)
    assert sorted(ran) == sorted([[q, p, False] for q in "ab" for p in (0, 6, 9) for _ in "12"])
    assert [priority for _, priority, _ in ran] == [0] * 4 + [6] * 4 + [9] * 4


def test_a_busy_queue_does_not_starve_another(site: Site) -> None:
    """Queues of one worker take turns."""
    app = site.app()
    for _ in range(200):
        app.send_task("where", queue="busy")
    app.send_task("where", queue="quiet")
    site.worker("solo", "-Q", "busy,quiet")
    until(lambda: ["quiet", 0, False] in site.noted())
    assert site.noted().index(["quiet", 0, False]) < 20


def test_idle_worker_answers_fast(site: Site) -> None:
    """An idle worker of several queues starts a job of any of them within milliseconds."""
    app = site.app()
    site.worker("solo", "-Q", "a,b,c")
    with Pace() as pace:
        app.send_task("clock", args=[time.time()], queue="a")
        until(lambda: site.noted("late"))
        for count, queue in enumerate("abcba", start=1):
            app.send_task("clock", args=[time.time()], queue=queue, priority=3)
            until(partial(site.more, "late", count))
        assert sorted(site.noted("late"))[2] < pace.allow(0.05)


def test_key_prefix(site: Site) -> None:
    """`global_keyprefix` is in front of every key of ours, in every script."""
    site.options = {"global_keyprefix": "pre:", "visibility_timeout": 5}
    app = site.app()
    app.send_task("run", args=["now"])
    app.send_task("run", args=["later"], countdown=3)  # a worker takes two to start
    assert site.redis.exists("pre:posthog_jobs:waiting", "pre:celery") == 2
    site.worker("prefork")
    until(lambda: sorted(site.noted()) == ["later", "now"])
    strange = [key for key in site.redis.scan_iter() if not key.startswith(b"pre:")]
    assert strange == []


def test_unix_socket_and_acl_user(site: Site) -> None:
    """`redis+socket://` works, and so does a user who may touch our keys and queues alone."""
    site.redis.execute_command(
        "ACL", "SETUSER", "jobs", "on", ">secret", "+@all", "-@dangerous", "+info",
        "~posthog_jobs:*", "~celery*", "~_kombu*", "~unacked*", "~*.celery.pidbox*", "&*",
    )  # fmt: skip
    app = site.app()
    app.send_task("run", args=["now"])
    app.send_task("run", args=["later"], countdown=0.5)
    site.broker = f"redis+socket://jobs:secret@{site.server.socket}"
    site.worker("solo", fanout_prefix=True)
    until(lambda: sorted(site.noted()) == ["later", "now"])


def test_tls(site: Site, notes_server: Server, tmp_path: Path) -> None:
    """`rediss://` works."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, which makes the certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    folder = tmp_path / "tls"
    folder.mkdir()
    try:
        server = Server(
            folder, "--tls-port", str(port), "--tls-cert-file", str(cert),
            "--tls-key-file", str(key), "--tls-auth-clients", "no",
        )  # fmt: skip
    except AssertionError:
        if "Failed finding TLS support" not in (folder / "server.log").read_text():
            raise
        pytest.skip("this server is built without TLS")
    try:
        site.broker = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none&ssl_check_hostname=false"
        app = site.app()
        app.send_task("run", args=["now"])
        app.send_task("run", args=["later"], countdown=0.5)
        site.worker("solo")
        until(lambda: sorted(site.noted()) == ["later", "now"])
        site.close()
    finally:
        server.kill()


def test_inspect_and_control(site: Site) -> None:
    """Remote control answers at once, and leaves nothing behind."""
    worker = site.worker("prefork")
    app = site.app()
    begun = time.monotonic()
    assert app.control.ping(timeout=60, limit=1) == [{worker.name: {"ok": "pong"}}]
    assert time.monotonic() - begun < 50, "it waits for no second answer"
    until(lambda: list(app.control.inspect(timeout=2).ping() or {}) == [worker.name])
    until(lambda: not [k for k in site.redis.keys("posthog_jobs:inflight*") if b"reply" in k])


def test_command_line_of_stock_celery(site: Site) -> None:
    """`celery inspect` and `celery purge` work on an app with our transport."""
    site.worker("solo")
    env = environment(site.broker, site.notes_server.url)
    out = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.servers.tasks", "inspect", "active_queues"],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "celery" in out.stdout


def test_guards(site: Site, own_server: Server) -> None:
    """Settings that may lose jobs are named with their fix; a safe server gets no warning."""
    assert warnings_for(lambda: (own_server.client(), Keys())) == []
    (unsaved,) = warnings_for(lambda: (site.redis, Keys()))
    assert "appendonly yes" in unsaved
    own_server.client().config_set("maxmemory-policy", "allkeys-lru")
    (evicts,) = warnings_for(lambda: (own_server.client(), Keys()))
    assert "maxmemory-policy noeviction" in evicts
