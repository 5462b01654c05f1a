"""`sentinel://`: the server that Sentinel names, and the one that takes its place."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.servers.nodes import free_port
from tests.servers.processes import Server, running, server_binary, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.processes import Site

JOBS = 30


@contextmanager
def watched(site: Site, folder: Path) -> Iterator[None]:
    """Have a Sentinel watch a site's server, and the site's apps and workers ask it."""
    port, config = free_port(), folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {site.server.port} 1\n"
        "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 4000\n"
        f"dir {folder}\n"
    )
    with (folder / "sentinel.log").open("wb") as log:
        sentinel = subprocess.Popen(
            [server_binary(), str(config), "--sentinel"], stdout=log, stderr=log
        )
    try:
        site.broker = f"sentinel://127.0.0.1:{port}"
        site.options = {"master_name": "main"}
        errors = site.producer.connection_for_write().connection_errors

        def sent() -> bool:
            try:
                site.producer.send_task("run", args=["now"], retry=False)
            except errors:
                return False
            return True

        until(sent)
        yield
        site.close()
    finally:
        sentinel.kill()
        sentinel.wait()


def test_sentinel(site: Site, tmp_path: Path) -> None:
    """`sentinel://` finds the server and works."""
    with watched(site, tmp_path):
        site.producer.send_task("run", args=["later"], countdown=0.5)
        site.worker("solo")
        until(lambda: sorted(site.noted()) == ["later", "now"])


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_failover(frail_site: Site, tmp_path: Path, pool: str) -> None:
    """What waits, and what runs, outlives a server that is killed; each of it runs once."""
    site = frail_site
    with (
        TemporaryDirectory(prefix="pj") as folder,
        running(Server(Path(folder), "--replicaof", f"127.0.0.1 {site.server.port}")) as other,
        watched(site, tmp_path),
    ):
        site.worker(pool)
        until(lambda: site.noted() == ["now"])
        copy = other.client()
        until(lambda: copy.info("replication")["master_link_status"] == "up")
        site.producer.send_task("hold", args=["held"])
        for number in range(JOBS):
            site.producer.send_task("run", args=[f"later {number}"], countdown=5)
        until(lambda: site.noted("started") and copy.hlen("posthog_jobs:waiting") == JOBS)
        until(lambda: sum(map(copy.hlen, copy.keys("posthog_jobs:inflight:*"))) == 1)

        site.server.kill()

        until(lambda: copy.info("replication")["role"] == "master")
        policy = {"max_retries": None, "interval_start": 0.1, "interval_max": 0.5}
        site.app().send_task("run", args=["after"], retry=True, retry_policy=policy)
        site.let_go()
        until(lambda: len(site.noted()) >= JOBS + 3)
        until(lambda: not copy.keys("posthog_jobs:inflight:*"))
        assert sorted(site.noted()) == sorted(
            ["now", "held", "after", *(f"later {number}" for number in range(JOBS))]
        )
        assert not copy.exists("celery", "posthog_jobs:waiting")
