"""What a worker should warn of at start: settings of Redis that may lose waiting jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from redis import Redis

#: The oldest server whose commands our scripts use (HRANDFIELD, RPOP with a count, ZADD LT).
OLDEST: Final = (6, 2)


def warnings_for(client: Redis) -> list[str]:
    """Sentences about the server's settings, each with the setting and the fix; best is none.

    A server that hides its settings (`CONFIG` forbidden or renamed) is judged by `INFO` alone.
    """
    info: dict[str, Any] = client.info()
    found = []
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        found.append(
            f"Redis {version} is too old: the transport's scripts need 6.2 or later. "
            "Upgrade the server."
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"maxmemory-policy is {policy!r}: when memory runs out, Redis deletes jobs that wait. "
            "Set maxmemory-policy noeviction."
        )
    if not info.get("aof_enabled") and _saves(client) == "":
        found.append(
            "Redis keeps nothing on disk (appendonly no, save ''): a restart loses all jobs that "
            "wait. Set appendonly yes."
        )
    return found


def _saves(client: Redis) -> str | None:
    """The `save` setting: empty without RDB snapshots, None when the server does not tell."""
    try:
        setting: str | bytes | None = client.config_get("save").get("save")
    except ResponseError:
        return None
    return setting.decode() if isinstance(setting, bytes) else setting
