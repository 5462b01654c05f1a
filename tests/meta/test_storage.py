"""`meta.storage` and `meta.utils.cursor`: one contract, in memory, on Redis and databases."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.broker.transport.transport import redis_server
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    ConfigurationError,
    StoreUnavailableError,
    StoreValueError,
)
from posthog_jobs.meta import sql_storage
from posthog_jobs.meta.redis_stores import RedisStorage
from posthog_jobs.meta.sql_storage import SQLStorage
from posthog_jobs.settings import Settings
from posthog_jobs.testing.memory import MemoryStorage, memory_stores
from posthog_jobs.worker.runtime import Runtime
from tests.conftest import APPS
from tests.recorder import Recorder
from tests.servers import postgres_node
from tests.servers.nodes import RedisProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from posthog_jobs import Meta
    from posthog_jobs.meta.storage import StorageBackend
    from tests.servers.postgres_node import PostgresProcess

KINDS = ("memory", "redis", "sqlite", "postgresql")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    yield from RedisProcess.launch(tmp_path_factory.mktemp("redis")).serve()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    reason = postgres_node.why_not()
    if reason is not None:
        pytest.skip(reason)
    yield from postgres_node.serve()


@pytest.fixture(scope="module", params=KINDS)
def storage_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str | None:
    """The setting posthog_jobs_storage_url; None for Redis, and empty for memory."""
    if request.param in ("redis", "memory"):
        return None if request.param == "redis" else ""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'storage.db'}"
    server: PostgresProcess = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture
def runtime(redis: RedisProcess, storage_url: str | None) -> Runtime:
    if storage_url == "":
        stores = memory_stores(lambda: datetime.now(UTC))
        return Runtime(Settings(apps=APPS), Recorder(), stores)
    config = {"posthog_jobs_apps": APPS, "posthog_jobs_storage_url": storage_url}
    app = PostHogJobs(config_source={"broker_url": redis.url, **config})
    for app_id in APPS:
        app.runtime.metas.purge(app_id)
    return app.runtime


@pytest.fixture
def meta(runtime: Runtime) -> Meta:
    return runtime.meta("recorder")


def backend_of(url: str | None, redis_url: str) -> StorageBackend:
    """Return a backend with connections of its own."""
    if url is not None:
        return SQLStorage(url)
    app = PostHogJobs(config_source={"broker_url": redis_url})
    return RedisStorage(redis_server(app.connection_for_write))


VALUES: list[object] = [
    None,
    0,
    "",
    False,
    [],
    {},
    "é\0\U0001f600",
    1.5,
    {"a": [datetime.now(UTC), b"\xff", Decimal("1.10")]},
    "x" * 300_000,
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_come_back_equal(meta: Meta, value: object) -> None:
    """Storage: what was set is what is got, falsy, odd and large values too, of the same type."""
    meta.storage.set("key", "before")
    meta.storage.set("key", value)

    assert meta.storage.get("key", "default") == value
    assert type(meta.storage.get("key", "default")) is type(value)


def test_defaults_and_delete(meta: Meta) -> None:
    """Storage: a key that is not there gives the default; delete tells whether it was there."""
    assert meta.storage.get("key") is None
    assert meta.storage.get("key", 7) == 7
    meta.storage.set("key", 1)
    assert meta.storage.delete("key") is True
    assert meta.storage.delete("key") is False
    assert meta.storage.get("key", 7) == 7


ALIKE = ["key", "Key", "key ", " key", "ke\u0301y", "k\u00e9y", "key\0", "key\n", "%", "k%", "_ey"]


def test_keys_are_told_apart_exactly(meta: Meta) -> None:
    """Storage: case, spaces, Unicode's normal forms and wildcards tell keys apart."""
    longest = ["x" * 1024, "x" * 1023, "\U0001f600" * 256]
    for place, key in enumerate([*ALIKE, *longest]):
        meta.storage.set(key, place)

    assert [meta.storage.get(key) for key in [*ALIKE, *longest]] == list(range(14))


def test_installations_share_nothing_and_are_purged_alone(runtime: Runtime) -> None:
    """Storage: two installations never see each other's values; purging one leaves the other."""
    one, two = runtime.meta("recorder"), runtime.meta("second")
    one.storage.set("key", 1)
    two.storage.set("key", 2)
    one.utils.cursor.init("page", 7)

    assert runtime.metas.purge("recorder") == 2
    assert (one.storage.get("key"), one.storage.get("page")) == (None, None)
    assert two.storage.get("key") == 2


def test_a_cursor_starts_once(meta: Meta) -> None:
    """Cursor: init starts it once; in every further process it goes on, as with PostHog."""
    assert meta.utils.cursor.init("page", 5) is None
    assert meta.utils.cursor.increment("page") == 6
    meta.utils.cursor.init("page")
    assert meta.utils.cursor.increment("page", 10) == 16
    assert meta.utils.cursor.increment("page", -20) == -4
    assert meta.storage.get("page") == -4
    meta.storage.set("page", 100)
    assert meta.utils.cursor.increment("page", 0) == 100
    assert meta.utils.cursor.increment("another") == 1


@pytest.mark.parametrize("kept", ["5", 1.5, None, True, [1], {"a": 1}, 2**63 - 1, 2**70, "geheim"])
def test_a_cursor_takes_whole_numbers_alone(meta: Meta, kept: object) -> None:
    """Cursor: what is stored and no whole number of 64 bits, or would be none, stays as it is."""
    meta.storage.set("page", kept)

    with pytest.raises(StoreValueError) as raised:
        meta.utils.cursor.increment("page")
    assert meta.storage.get("page") == kept
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("number", [1.5, True, "1", None, 2**63])
def test_bad_arguments_are_refused_at_the_call(meta: Meta, number: Any) -> None:
    """Cursor: bad numbers and keys are refused where they are given, in coroutines too."""

    async def use() -> None:
        for call in (meta.utils.cursor.init, meta.utils.cursor.increment):
            with pytest.raises(StoreValueError, match="use a whole number"):
                call("page", number)
            with pytest.raises(StoreValueError):
                call("", 1)

    asyncio.run(use())


def test_async_code_awaits_and_need_not(meta: Meta) -> None:
    """Storage and cursor: calls of a coroutine are made in order, awaited or not."""

    async def use() -> object:
        meta.storage.set("page", 4)
        meta.utils.cursor.init("page", 0)
        meta.utils.cursor.increment("page")
        return await meta.utils.cursor.increment("page")

    assert asyncio.run(use()) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_processes_and_threads_count_together(meta: Meta, storage_url: str | None) -> None:
    """Cursor: no increment is lost, in threads and in forks of a process that has connections."""
    forks = 0 if storage_url == "" else 2
    meta.storage.set("page", 0)
    children = []
    for _ in range(forks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(40):
                    meta.utils.cursor.increment("page")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    with ThreadPoolExecutor(4) as threads:
        sums = list(threads.map(lambda _: meta.utils.cursor.increment("page"), range(80)))

    assert [os.waitpid(child, 0)[1] for child in children] == [0] * forks
    assert len(set(sums)) == 80
    assert meta.storage.get("page") == 80 + 40 * forks


def test_many_begin_at_once(redis: RedisProcess, storage_url: str | None) -> None:
    """Storage: several that make the table, or insert one key, at the same time all succeed."""
    if storage_url:
        SQLStorage(storage_url)._call(
            lambda connection: connection.exec_driver_sql(f"DROP TABLE {sql_storage.TABLE}")
        )
    backends: list[StorageBackend] = [MemoryStorage()] * 6
    if storage_url != "":
        backends = [backend_of(storage_url, redis.url) for _ in range(6)]
    start = threading.Barrier(len(backends))

    def begin(backend: StorageBackend) -> tuple[bool, int]:
        start.wait()
        return backend.add("begin", "key", "1"), backend.increment("begin", "count", 1)

    with ThreadPoolExecutor(len(backends)) as threads:
        results = list(threads.map(begin, backends))

    assert sorted(added for added, _ in results) == [False] * 5 + [True]
    assert sorted(count for _, count in results) == [1, 2, 3, 4, 5, 6]
    assert backends[0].purge("begin") == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://bob:hunter2@host", "names the driver 'mysql'"),
        ("nothing://bob:hunter2@host/db", "not the URL of a database that SQLAlchemy knows"),
        ("postgresql+psycopg://bob:hunter2@host:port/db", "not the URL of a database"),
        ("sqlite://", "in memory, which keeps nothing"),
        ("sqlite:///:memory:", "in memory, which keeps nothing"),
        ("sqlite+pysqlite:///file:x?mode=memory&uri=true", "in memory, which keeps nothing"),
        ("postgresql+psycopg_async://bob:hunter2@host/db", "an asyncio driver"),
    ],
)
def test_urls_that_cannot_work(redis: RedisProcess, url: str, message: str) -> None:
    """Settings: a wrong posthog_jobs_storage_url is refused, and its password not shown."""
    app = PostHogJobs(config_source={"broker_url": redis.url, "posthog_jobs_storage_url": url})
    with pytest.raises(ConfigurationError, match=message) as raised:
        assert app.runtime
    assert "hunter2" not in str(raised.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings: without SQLAlchemy a storage URL is refused with what to install."""
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.delitem(sys.modules, "posthog_jobs.meta.sql_storage")
    app = PostHogJobs(config_source={"posthog_jobs_storage_url": "sqlite:///storage.db"})

    with pytest.raises(ConfigurationError, match=r"pip install 'posthog-jobs\[sql\]'"):
        assert app.runtime


def test_a_database_that_is_away(tmp_path: Path) -> None:
    """Storage: a database that cannot be reached is an error that shows no password."""
    away = SQLStorage("postgresql+psycopg://bob:hunter2@127.0.0.1:1/db?password=hunter2")
    with pytest.raises(StoreUnavailableError, match=r"bob:\*\*\*@127.0.0.1:1/db\) failed") as one:
        away.get("recorder", "key")
    with pytest.raises(StoreUnavailableError, match="unable to open database file"):
        SQLStorage(f"sqlite:///{tmp_path}/no/such.db").get("recorder", "key")
    assert "hunter2" not in str(one.value)


def test_a_database_that_comes_back(redis: RedisProcess, tmp_path: Path) -> None:
    """Storage: after its database was away it goes on by itself."""
    folder = tmp_path / "later"
    storage = SQLStorage(f"sqlite:///{folder}/storage.db")
    with pytest.raises(StoreUnavailableError):
        storage.set("recorder", "key", "1")
    folder.mkdir()
    storage.set("recorder", "key", "1")

    assert storage.get("recorder", "key") == "1"


def test_a_file_in_use(tmp_path: Path) -> None:
    """Storage: the first call to an SQLite file waits for who writes to it just then."""
    path = tmp_path / "storage.db"
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("CREATE TABLE other (value)")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO other VALUES (1)")
    ended = threading.Timer(0.2, lambda: writer.execute("COMMIT"))
    ended.start()
    try:
        assert SQLStorage(f"sqlite:///{path}").increment("recorder", "page", 1) == 1
    finally:
        ended.join()
        writer.close()


def test_postgres_drops_its_connections(postgres: PostgresProcess) -> None:
    """Storage: connections that the server has closed meanwhile are replaced unseen."""
    storage = SQLStorage(postgres.url)
    storage.set("recorder", "key", "1")
    other = SQLStorage(postgres.url)
    end_others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    other._call(lambda connection: connection.exec_driver_sql(end_others))

    assert storage.get("recorder", "key") == "1"


@pytest.mark.skipif(
    sys.platform != "linux", reason="a stopped server is refused, or not, elsewhere"
)
def test_a_redis_that_hangs_is_an_error(tmp_path: Path) -> None:
    """Storage and cache: a Redis that takes calls and never answers is an error in seconds."""
    for server in RedisProcess.launch(tmp_path).serve():
        config = {"broker_url": server.url, "posthog_jobs_apps": APPS}
        meta = PostHogJobs(config_source=config).meta_for("recorder")
        meta.storage.set("key", 1)
        server.kill("SIGSTOP")
        try:
            with pytest.raises(StoreUnavailableError, match="does not answer"):
                meta.storage.get("key")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert meta.storage.get("key") == 1
