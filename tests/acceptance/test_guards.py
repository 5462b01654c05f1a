"""What a worker says at its start about a broker that may lose what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from posthog_jobs.broker.redis import Keys
from posthog_jobs.operate.doctor import warnings_for
from tests.servers.nodes import RedisProcess, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.nodes import WorkerProcess

EVICTS = ["--maxmemory-policy", "allkeys-lru"]
KEEPS = ["--appendonly", "yes"]
NO_DISK = (
    "Redis keeps nothing on disk (appendonly no, save ''): a restart loses all jobs that wait. "
    "Set appendonly yes."
)
MAY_EVICT = (
    "maxmemory-policy is 'allkeys-lru': when memory runs out, Redis deletes jobs that wait. "
    "Set maxmemory-policy noeviction."
)


@pytest.fixture
def options() -> list[str]:
    """What the server is started with; for parametrizing."""
    return []


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Iterator[RedisProcess]:
    yield from RedisProcess.launch(tmp_path_factory.mktemp("redis"), *options).serve()


@pytest.fixture
def default_worker_env(default_worker_env: dict[str, str], server: RedisProcess) -> dict[str, str]:
    return {**default_worker_env, "CELERY_BROKER_URL": server.url}


@pytest.fixture
def celery_setup_config(server: RedisProcess) -> dict[str, Any]:
    return {"broker_url": server.url}


def warned(worker: WorkerProcess) -> list[str]:
    """Return what the worker's log has as warnings of ours, once it took up work."""
    return [
        line.partition("WARNING/MainProcess] ")[2]
        for line in worker.logs().splitlines()
        if "WARNING/MainProcess]" in line and ("Redis" in line or "maxmemory" in line)
    ]


@pytest.mark.parametrize(
    ("options", "expected"), [(EVICTS, [MAY_EVICT, NO_DISK]), ([*EVICTS, *KEEPS], [MAY_EVICT])]
)
def test_a_worker_warns(
    server: RedisProcess,
    start_worker: Callable[[], WorkerProcess],
    options: list[str],
    expected: list[str],
) -> None:
    """Guards: a worker warns once of what the broker may lose, with the setting and the fix."""
    worker = start_worker()

    assert poll("warnings", lambda: len(found := warned(worker)) >= len(expected) and found) == (
        expected
    )


@pytest.mark.parametrize("options", [KEEPS])
def test_a_worker_has_nothing_to_warn_of(
    server: RedisProcess, start_worker: Callable[[], WorkerProcess], options: list[str]
) -> None:
    """Guards: on a server that evicts nothing and keeps all, a worker warns of nothing."""
    worker = start_worker()
    worker.stop()  # so that the log is whole

    assert warned(worker) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (KEEPS, []),
        (["--save", "3600 1"], []),
        (["--appendonly", "yes", "--save", "3600 1"], []),
        ([], [NO_DISK]),
        (["--maxmemory-policy", "volatile-ttl", *KEEPS], ["maxmemory-policy is 'volatile-ttl'"]),
        (["--rename-command", "CONFIG", ""], []),
    ],
    ids=["aof", "rdb", "both", "neither", "volatile", "no CONFIG"],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_which_settings_are_warned_of(
    server: RedisProcess, options: list[str], expected: list[str], protocol: int
) -> None:
    """Guards: AOF or RDB suffice; any policy but noeviction may evict; what is hidden passes."""
    client = Redis(port=server.port, protocol=protocol)

    found = warnings_for(lambda: (client, Keys()))

    assert len(found) == len(expected)
    for sentence, start in zip(found, expected, strict=True):
        assert sentence.startswith(start)


def test_an_application_user_may_not_look(server: RedisProcess) -> None:
    """Guards: a user whom the server refuses its settings is warned of nothing else."""
    admin = Redis(port=server.port)
    admin.acl_setuser(
        "app", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all", "-@admin"]
    )

    client = Redis(port=server.port, username="app", password="secret")

    assert warnings_for(lambda: (client, Keys())) == []
