"""Messages as somebody would write them who can reach the queue and knows how they look."""

from __future__ import annotations

import base64
import copy
import json
import uuid
import zlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

TAKE = "posthog_jobs.sink.take"
SOON = datetime.now(UTC) + timedelta(days=300)
PAST = datetime.now(UTC) - timedelta(days=300)


#: Stand for lists in lists, as deep as that; to walk through them would go too deep for Python.
DEEP = {f"nested {depth}": "[" * depth + "]" * depth for depth in (150, 700, 100_000)}

#: What stands in a message in the place of something else.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, 10**4000, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "0", "\x00", "\x01\x02\x03", "a\nTask forged[1] succeeded in 0s", "\x1b[2J", "\ud800",
    "é\u202e", "../../etc/passwd", "*", "a:b", '"}', "%s%n{0}", "x" * 5000, [], {}, [[]], [None],
    {"": None}, {"__type__": "datetime", "__value__": "x"}, {"__type__": [], "__value__": 1},
    {"__type__": "os.system", "__value__": "true"}, {"__type__": "uuid", "__value__": {}},
    {"__type__": "decimal", "__value__": "1e999999"}, *DEEP, "os.system",
    TAKE, "posthog_jobs.capture", "posthog_jobs.sink.nothing", "posthog_jobs.nobody.take",
    "celery.chord_unlock", "celery.map", "celery.accumulate", "sink", "SINK", "sink2",
    PAST.isoformat(), SOON.isoformat(), "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59",
    "application/x-python-serialize", "application/data", "zlib", "gzip", "rot13", "base64",
    ["queue", "exchange"], {"queue": "elsewhere"}, [0.001, 0.001], ["a", 1],
)  # fmt: skip

#: Names that mean something to Celery, kombu or us somewhere in a message.
NAMES: tuple[str, ...] = (
    "task", "id", "retries", "eta", "expires", "timelimit", "shadow", "root_id", "parent_id",
    "group", "chord", "chain", "callbacks", "errbacks", "compression", "argsrepr", "kwargsrepr",
    "origin", "ignore_result", "stamps", "stamped_headers", "headers", "redelivered", "hostname",
    "called_directly", "is_eager", "delivery_info", "priority", "reply_to", "correlation_id",
    "body_encoding", "exchange", "routing_key", "args", "kwargs", "utc", "lang",
    "posthog_jobs_app", "posthog_jobs_due", "posthog_jobs_key", "posthog_jobs_if_waiting",
    "posthog_jobs_waited", "posthog_jobs_error", "posthog_jobs_kept_key",
    "posthog_jobs_replay_of", "properties", "body", "content-type", "content-encoding",
)  # fmt: skip


def message(
    random: Random, task: str, args: list[Any], *, headers: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a message of Celery's protocol 2, as a producer sends it; its body is no text yet."""
    task_id = _uuid(random)
    return {
        "body": [args, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": task, "id": task_id, "shadow": None, "eta": None,
            "expires": None, "group": None, "group_index": None, "retries": 0,
            "timelimit": [None, None], "root_id": task_id, "parent_id": None, "argsrepr": "()",
            "kwargsrepr": "{}", "origin": "gen1@x", "ignore_result": True,
            "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {}, **(headers or {}),
        },
        "properties": {
            "correlation_id": task_id, "reply_to": _uuid(random), "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0,
            "body_encoding": "base64", "delivery_tag": _uuid(random),
        },
    }  # fmt: skip


def protocol_1(random: Random) -> dict[str, Any]:
    """Return a message of Celery's protocol 1, which has all but the properties in its body."""
    body = {
        "task": TAKE, "id": _uuid(random), "args": ["sink", 1], "kwargs": {}, "retries": 0,
        "eta": None, "expires": None, "utc": True, "callbacks": None, "errbacks": None,
        "timelimit": [None, None], "taskset": None, "chord": None,
    }  # fmt: skip
    return {**message(random, TAKE, []), "body": body, "headers": {}}


GZIP = {"compression": "application/x-gzip"}
RETRIED = {"posthog_jobs_app": "sink", "retries": 2}
EVENT = {"event": "x", "properties": {"a": [1, {"b": None}]}, "team_id": 1}

#: Each makes a good message, with ids of its own.
MAKERS: tuple[Callable[[Random], dict[str, Any]], ...] = (
    lambda random: message(random, TAKE, ["sink", {"n": [1, 2.5, None]}]),
    lambda random: message(random, "posthog_jobs.sink.take_nothing", ["sink"]),
    lambda random: message(random, TAKE, ["sink", "late"], headers={"eta": PAST.isoformat()}),
    lambda random: message(random, TAKE, ["sink", "waits"], headers={"eta": SOON.isoformat()}),
    lambda random: message(
        random, TAKE, ["sink", 1], headers={"compression": "application/x-gzip"}
    ),
    lambda random: message(
        random, TAKE, ["sink", 1], headers={"posthog_jobs_app": "sink", "retries": 2}
    ),
    lambda random: message(random, "posthog_jobs.capture", [copy.deepcopy(EVENT)]),
    lambda random: message(random, "posthog_jobs.on_event", ["sink", copy.deepcopy(EVENT)]),
    lambda random: message(random, "posthog_jobs.run_every_minute", ["sink", 0]),
    lambda random: message(random, "celery.accumulate", [1, 2]),
    protocol_1,
)


def _uuid(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def dump(value: Any) -> str:
    text = json.dumps(value)
    for word, lists in DEEP.items():
        text = text.replace(f'"{word}"', lists)
    return text


def encoded(good: dict[str, Any]) -> bytes:
    """Return a message as it stands in the queue."""
    headers = good.get("headers")
    body = dump(good.get("body")).encode()
    if isinstance(headers, dict) and headers.get("compression") == "application/x-gzip":
        body = zlib.compress(body)
    properties = good.get("properties")
    if isinstance(properties, dict) and properties.get("body_encoding") == "base64":
        return dump({**good, "body": base64.b64encode(body).decode()}).encode()
    return dump({**good, "body": body.decode("latin-1")}).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place in a value, as a container and a key or index."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, part in items:
        yield value, key
        yield from _places(part)


def _mutate(bad: dict[str, Any], random: Random) -> None:
    """Let one thing be wrong."""
    holder, key = random.choice(list(_places(bad)))
    what = random.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[random.choice(NAMES)] = copy.deepcopy(random.choice(VALUES))
    elif what == 2 and isinstance(holder, dict):  # one value twice, under another name, too
        holder[random.choice(NAMES)] = copy.deepcopy(holder[key])
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))


def _damage(raw: bytearray, random: Random) -> None:
    """Let some bytes be wrong."""
    at = random.randrange(len(raw) + 1)
    what = random.randrange(5)
    if what == 0:
        raw[at : at + 1] = bytes([random.randrange(256)])
    elif what == 1:
        del raw[at : at + random.randint(1, 9)]
    elif what == 2:
        raw[at:at] = raw[at : at + random.randint(1, 60)]
    elif what == 3:
        raw[at:at] = random.randbytes(random.randint(1, 9))
    elif random.random() < 0.2:
        del raw[at:]


def mutated(random: Random) -> bytes:
    """Return a good message in which something, or a few things, are wrong."""
    bad = random.choice(MAKERS)(random)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        _mutate(bad, random)
    body, headers = bad.get("body"), bad.get("headers")
    if isinstance(body, dict) and body.get("eta") == SOON.isoformat():
        body["eta"] = None  # of protocol 1, which would wait in the worker
    if isinstance(headers, dict):
        for name in ("id", "posthog_jobs_key"):  # of two that wait under one, only the last stays
            if isinstance(word := headers.get(name), str) and word not in DEEP:
                headers[name] = f"{word}{random.getrandbits(64):x}"
            elif name in headers:
                headers["eta"] = None
    raw = bytearray(encoded(bad))
    for _ in range(random.choice((0, 0, 0, 0, 1, 2, 4))):
        _damage(raw, random)
    return bytes(raw)
