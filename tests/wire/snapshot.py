"""A Redis server's keys as a JSON file that can be read, and back.

Redis' own types are kept as they are. Text is text; what is no UTF-8 is `{"base64": …}`. A sorted
set is a list of member and score, a hash a list of field and value.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FILE: Final = Path(__file__).parent / "wire.json"

#: Failed jobs are kept for 30 days, so the times at which they failed are those of the load, less
#: the time that passed between them and the end of the recording.
_MOVED: Final = ("posthog_jobs:failed_at", "posthog_jobs:failed:")


def dump(client: Any, text: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return all keys, sorted by name.

    Args:
        client: a Redis client whose replies are bytes.
        text: takes out of a text what is this machine's own.
    """

    def shown(value: bytes) -> Any:
        try:
            return text(value.decode())
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}

    def value_of(kind: str, key: bytes) -> Any:
        match kind:
            case "string":
                return shown(client.get(key))
            case "list":
                return [shown(value) for value in client.lrange(key, 0, -1)]
            case "set":
                return [shown(value) for value in sorted(client.smembers(key))]
            case "hash":
                return [[shown(a), shown(b)] for a, b in sorted(client.hgetall(key).items())]
            case "zset":
                return [[shown(a), at] for a, at in client.zrange(key, 0, -1, withscores=True)]
        raise AssertionError(f"{key!r} is of type {kind}")

    dumped = []
    for key in sorted(client.keys()):
        kind = client.type(key).decode()
        ttl = client.pttl(key)
        entry = {"key": shown(key), "type": kind, "value": value_of(kind, key)}
        dumped.append(entry if ttl < 0 else {**entry, "ttl_ms": ttl})
    return dumped


def load(client: Any, recorded: dict[str, Any]) -> None:
    """Write all keys of a recording into a server that has none."""
    passed = time.time() * 1000 - recorded["at_ms"]
    pipe = client.pipeline()
    for entry in recorded["keys"]:
        key, value = entry["key"], entry["value"]
        moved = passed if key.startswith(_MOVED) else 0
        match entry["type"]:
            case "string":
                pipe.set(key, _raw(value))
            case "list":
                pipe.rpush(key, *map(_raw, value))
            case "set":
                pipe.sadd(key, *map(_raw, value))
            case "hash":
                pipe.hset(key, mapping={_raw(a): _raw(b) for a, b in value})
            case "zset":
                pipe.zadd(key, {_raw(a): at + moved for a, at in value})
        if "ttl_ms" in entry:
            pipe.pexpire(key, entry["ttl_ms"])
    pipe.execute()


def read() -> dict[str, Any]:
    """Return the recording that is kept in this folder."""
    recorded: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return recorded


def _raw(value: Any) -> bytes:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else str(value).encode()
