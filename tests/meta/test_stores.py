"""`meta.cache`, and what storage shares with it, on a real Redis and in memory."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    ConfigurationError,
    PostHogJobsError,
    StoreUnavailableError,
    StoreValueError,
)
from posthog_jobs.settings import Settings
from posthog_jobs.testing.memory import memory_stores
from posthog_jobs.worker.runtime import Runtime
from tests.conftest import APPS
from tests.recorder import Recorder
from tests.servers.nodes import RedisProcess, closed_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from posthog_jobs import Meta


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    yield from RedisProcess.launch(tmp_path_factory.mktemp("redis")).serve()


@pytest.fixture(params=["redis", "memory"])
def installed(request: pytest.FixtureRequest) -> Callable[[str], Meta]:
    """What gives an installation's meta, over Redis and over what app authors test with."""
    if request.param == "memory":
        stores = memory_stores(lambda: datetime.now(UTC))
        return Runtime(Settings(apps=APPS), Recorder(), stores).meta
    redis: RedisProcess = request.getfixturevalue("redis")
    redis.client.flushall()
    return metas(redis)


@pytest.fixture
def meta(installed: Callable[[str], Meta]) -> Meta:
    return installed("recorder")


def metas(redis: RedisProcess, **options: Any) -> Callable[[str], Meta]:
    config = {"broker_url": redis.url, "posthog_jobs_apps": APPS, **options}
    return PostHogJobs(config_source=config).meta_for


VALUES: list[object] = [None, 0, "", False, [], {}, "é", 1.5, {"a": [datetime.now(UTC), b"\xff"]}]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_equal(meta: Meta, value: object) -> None:
    """meta: what was set is what is got, in cache and storage, falsy values too."""
    meta.cache.set("key", value)
    meta.storage.set("key", value)

    assert meta.cache.get("key", "default") == value
    assert meta.storage.get("key", "default") == value
    assert type(meta.cache.get("key")) is type(value)


def test_defaults(meta: Meta) -> None:
    """meta: a key of the cache that is not there gives the default."""
    assert meta.cache.get("nothing") is None
    assert meta.cache.get("nothing", 7) == 7


def test_cache_and_storage_share_no_key(installed: Callable[[str], Meta], meta: Meta) -> None:
    """meta: cache and storage, and two installations, never see each other's values."""
    second = installed("second")
    meta.cache.set("key", "cache")
    meta.storage.set("key", "storage")

    assert meta.cache.get("key") == "cache"
    assert meta.storage.get("key") == "storage"
    assert second.cache.get("key") is None
    assert second.storage.get("key") is None
    for spelling in ("recorder:key", "../recorder:key", "recorder", "\nrecorder:key"):
        assert second.cache.get(spelling) is None
        assert second.storage.get(spelling) is None


def test_time_to_live(meta: Meta) -> None:
    """meta: a value with a ttl vanishes after so many seconds; storage has none."""
    meta.cache.set("soon", 1, ttl=0.05)
    meta.cache.set("later", 1, 100)
    meta.cache.set("stays", 1)

    poll("the end of a ttl", lambda: meta.cache.get("soon") is None)
    assert meta.cache.get("later") == 1
    assert meta.cache.expire("stays", 0.05) is True
    assert meta.cache.expire("nothing", 5) is False
    poll("the end of a ttl", lambda: meta.cache.get("stays") is None)


def test_counters(meta: Meta) -> None:
    """meta: incr counts from 0, or from a whole number that was set."""
    assert [meta.cache.incr("count"), meta.cache.incr("count")] == [1, 2]
    assert meta.cache.get("count") == 2
    meta.cache.set("count", 41)
    assert meta.cache.incr("count") == 42


def test_lists(meta: Meta) -> None:
    """meta: lists are Redis' own, with values for elements."""
    assert meta.cache.lpush("list", [1, {"b": 1, "a": 2}, "x"]) == 3
    assert meta.cache.lpush("list", "first") == 4
    assert meta.cache.lrange("list", 0, -1) == ["first", "x", {"a": 2, "b": 1}, 1]
    assert meta.cache.lrange("list", 1, 1) == ["x"]
    assert meta.cache.llen("list") == 4
    assert meta.cache.lrem("list", 0, {"a": 2, "b": 1}) == 1
    assert meta.cache.lpop("list") == ["first"]
    assert meta.cache.lpop("list", 5) == ["x", 1]
    assert meta.cache.lpop("list") == []
    assert meta.cache.llen("list") == 0


@pytest.mark.parametrize(
    ("count", "rest"),
    [(1, "xoyze"), (2, "xyze"), (-2, "exyz"), (0, "xyz"), (9, "xyz"), (-9, "xyz")],
)
def test_equal_objects_in_a_list(meta: Meta, count: int, rest: str) -> None:
    """meta: lrem finds an object whatever the order of its keys, from the end that it is told."""
    one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    meta.cache.lpush("list", [one, "z", "y", other, "x", one])

    assert meta.cache.lrem("list", count, one) == 6 - len(rest)

    kept = meta.cache.lrange("list", 0, -1)
    names = {repr(one): "e", repr(other): "o"}
    assert "".join(names.get(repr(element), element) for element in kept) == rest


def test_the_order_of_keys(meta: Meta) -> None:
    """meta: an object comes back with its keys in the order that they had, wherever it was kept."""
    value = {"z": 1, "a": {"y": 2, "b": 3}}

    meta.cache.set("object", value)
    meta.storage.set("object", value)
    meta.cache.lpush("list", value)

    kept = [meta.cache.get("object"), meta.storage.get("object"), *meta.cache.lpop("list")]
    assert [[list(one), list(one["a"])] for one in kept] == [[["z", "a"], ["y", "b"]]] * 3


def test_counters_keep_to_64_bits(meta: Meta) -> None:
    """meta: incr refuses what is no integer of 64 bits, or would be none, and changes nothing."""
    for value in (2**63 - 1, 2**63, -(2**63) - 1, 10**30, 1.0, "1", True, None):
        meta.cache.set("count", value)
        with pytest.raises(StoreValueError):
            meta.cache.incr("count")
        assert meta.cache.get("count") == value
    meta.cache.set("count", -(2**63))
    assert meta.cache.incr("count") == -(2**63) + 1


def test_parts_of_a_list(meta: Meta) -> None:
    """meta: lrange counts from either end, and what lies outside of the list is empty."""
    meta.cache.lpush("list", ["d", "c", "b", "a"])
    places = [-9, -4, -2, -1, 0, 1, 3, 9]
    for start, end in itertools.product(places, places):
        first = max(start + 4, 0) if start < 0 else start
        last = end + 4 if end < 0 else end
        assert meta.cache.lrange("list", start, end) == [
            letter for place, letter in enumerate("abcd") if first <= place <= last
        ]


def test_removing_from_either_end(meta: Meta) -> None:
    """meta: lrem removes so many from the front, or with a negative count from the end."""
    for count, left in [(2, "bca"), (-2, "abc"), (9, "bc"), (-9, "bc"), (0, "bc")]:
        meta.cache.lpop("list", 9)
        meta.cache.lpush("list", list(reversed("abaca")))
        meta.cache.lrem("list", count, "a")
        assert meta.cache.lrange("list", 0, -1) == list(left)


def test_a_list_that_has_become_empty_is_gone(meta: Meta) -> None:
    """meta: after its last element a list is no list any more, however that was taken."""
    meta.cache.lpush("list", 1)
    meta.cache.lpop("list")
    assert meta.cache.incr("list") == 1
    meta.cache.lpush("other", 1)
    meta.cache.lrem("other", 0, 1)
    assert meta.cache.expire("other", 5) is False


def test_what_keeps_its_time_to_live(meta: Meta) -> None:
    """meta: set forgets an earlier ttl; incr and lpush keep it."""
    meta.cache.set("set", 1, 0.05)
    meta.cache.set("set", 1)
    meta.cache.incr("count")
    meta.cache.lpush("list", 1)
    meta.cache.expire("count", 2)
    meta.cache.expire("list", 2)
    meta.cache.incr("count")
    meta.cache.lpush("list", 2)

    poll("the end", lambda: meta.cache.get("count") is None and meta.cache.llen("list") == 0)
    assert meta.cache.get("set") == 1


BAD_KEYS = ["", None, 7, "x" * 1025, "\ud800", b"bytes"]


@pytest.mark.parametrize("key", BAD_KEYS, ids=range(6))
def test_bad_keys_are_refused(meta: Meta, key: Any) -> None:
    """meta: a key that is no usable string is refused, and nothing is stored."""
    calls: list[Callable[[], object]] = [
        lambda: meta.cache.set(key, 1),
        lambda: meta.cache.get(key),
        lambda: meta.cache.incr(key),
        lambda: meta.cache.lpush(key, 1),
        lambda: meta.storage.set(key, 1),
        lambda: meta.storage.get(key),
        lambda: meta.storage.delete(key),
    ]
    for call in calls:
        with pytest.raises(StoreValueError):
            call()


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, (1, 2), {"x": {1}}, float("nan")], ids=range(5)
)
def test_bad_values_are_refused(meta: Meta, value: object) -> None:
    """meta: a value that would not come back equal is refused where it is given."""
    for call in (meta.cache.set, meta.storage.set, meta.cache.lpush):
        with pytest.raises(StoreValueError, match="value"):
            call("key", value if call != meta.cache.lpush else [value])


@pytest.mark.parametrize("ttl", [0, -1, True, "5", float("nan"), float("inf"), 1e300])
def test_bad_ttls_are_refused(meta: Meta, ttl: Any) -> None:
    """meta: a ttl is a number of seconds above 0."""
    with pytest.raises(StoreValueError, match="ttl"):
        meta.cache.set("key", 1, ttl)
    with pytest.raises(StoreValueError, match="ttl"):
        meta.cache.expire("key", ttl)


def test_calls_for_another_kind_of_value_are_refused(meta: Meta) -> None:
    """meta: a list is no counter, and text no number."""
    meta.cache.lpush("list", 1)
    meta.cache.set("text", "x")
    calls: list[Callable[[], object]] = [
        lambda: meta.cache.incr("list"),
        lambda: meta.cache.incr("text"),
        lambda: meta.cache.get("list"),
        lambda: meta.cache.lpush("text", 1),
        lambda: meta.cache.lpush("list", []),
        lambda: meta.cache.lpop("list", 0),
        lambda: meta.cache.lrange("list", "0", 1),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(StoreValueError):
            call()


def test_async_code_awaits_and_need_not(meta: Meta) -> None:
    """meta: in a running event loop calls are awaited; what is not is done all the same."""

    async def use() -> tuple[object, object]:
        meta.cache.set("count", 4)  # not awaited, and still before the next call
        pending = meta.cache.incr("count")
        assert inspect.isawaitable(pending)
        await meta.storage.set("kept", [1])
        return await pending, await meta.storage.get("kept")

    assert asyncio.run(use()) == (5, [1])


def test_bad_arguments_are_refused_at_the_call_in_async_code_too(meta: Meta) -> None:
    """meta: in a running event loop, too, a bad key is an error where it is given."""

    async def use() -> None:
        with pytest.raises(StoreValueError):
            meta.cache.set("", 1)
        with pytest.raises(StoreValueError):
            await meta.cache.incr(await _text_key(meta))

    asyncio.run(use())


async def _text_key(meta: Meta) -> str:
    await meta.cache.set("text", "x")
    return "text"


def test_global_keyprefix_is_respected(redis: RedisProcess) -> None:
    """meta: with a global_keyprefix every key of ours has it."""
    redis.client.flushall()
    prefixed = metas(redis, broker_transport_options={"global_keyprefix": "tenant:"})("recorder")
    prefixed.cache.set("key", 1)
    prefixed.storage.set("key", 1)

    assert sorted(redis.client.keys("posthog_jobs*")) == []
    assert sorted(redis.client.keys("tenant:posthog_jobs*")) == [
        "tenant:posthog_jobs:cache:recorder:key",
        "tenant:posthog_jobs:storage:recorder",
    ]


def test_another_redis_can_be_named(redis: RedisProcess) -> None:
    """Settings: posthog_jobs_redis_url takes cache and storage away from the broker."""
    redis.client.flushall()
    other = metas(redis, broker_url="memory://", posthog_jobs_redis_url=f"{redis.url[:-1]}3")
    other("recorder").storage.set("key", "there")

    assert redis.client.info("keyspace")["db3"]["keys"] == 1
    assert metas(redis)("recorder").storage.get("key") is None


def test_errors_name_what_is_wrong(redis: RedisProcess) -> None:
    """Bad input: no Redis at all, and a Redis that is down, are errors that say so."""
    with pytest.raises(ConfigurationError, match="set posthog_jobs_redis_url"):
        metas(redis, broker_url="memory://")("recorder").cache.get("key")
    down = metas(redis, broker_url=f"redis://:hunter2@127.0.0.1:{closed_port()}/0")("recorder")
    with pytest.raises(StoreUnavailableError, match="does not answer") as raised:
        down.cache.get("key")
    assert "hunter2" not in str(raised.value)
    assert isinstance(raised.value, PostHogJobsError)
