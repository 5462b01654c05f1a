"""Whether Redis keeps what waits: its version, what it evicts, and what it has on disk.

A worker warns of it at its start, and `jobs doctor` reports it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from posthog_jobs.operate.doctor.findings import Verdict, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

    from posthog_jobs.operate.doctor.findings import Finding

#: The oldest server whose commands our scripts use (HRANDFIELD, RPOP with a count, ZADD LT).
OLDEST: Final = (6, 2)

#: What the broker holds; another server that is looked at holds something else.
JOBS: Final = "jobs that wait"


def version(info: Mapping[str, Any]) -> Finding:
    """Look at the server's version.

    Args:
        info: the server's reply to INFO.
    """
    found = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < OLDEST:
        return fail(
            "version",
            f"Redis {found} is too old: the transport's scripts need 6.2 or later",
            "Upgrade the server",
        )
    if "valkey_version" in info:
        return ok("version", f"Valkey {info['valkey_version']}, which speaks as Redis {found}")
    return ok("version", f"Redis {found}")


def eviction(info: Mapping[str, Any], holds: str = JOBS) -> Finding:
    """Look at what the server deletes when its memory runs out.

    Args:
        info: the server's reply to INFO.
        holds: what would be deleted.
    """
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return ok("eviction", "maxmemory-policy is 'noeviction'")
    fix = "Set maxmemory-policy noeviction"
    if not str(policy).startswith("allkeys"):
        what = "keys with a time to live, such as those of meta.cache"
        return warn(
            "eviction",
            f"maxmemory-policy is {policy!r}: when memory runs out, Redis deletes {what}",
            fix,
        )
    found = f"maxmemory-policy is {policy!r}: when memory runs out, Redis deletes {holds}"
    return (fail if info.get("maxmemory") else warn)("eviction", found, fix)


def persistence(client: Redis, info: Mapping[str, Any], holds: str = JOBS) -> Finding:
    """Look at what the server keeps on disk, and whether it could write it last time.

    Args:
        client: asked for its snapshots only where it has no append-only file.
        info: the server's reply to INFO.
        holds: what a restart would lose.

    Raises:
        ResponseError: the server does not tell (`CONFIG` forbidden or renamed).
    """
    for file in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(file, "ok") != "ok":
            return fail(
                "persistence",
                f"Redis could not write to its disk ({file} is {info[file]!r})",
                "Look at the server's log; see that its disk has room and is writable",
            )
    if info.get("aof_enabled"):
        return ok("persistence", "append-only file")
    if saves := _saves(client):
        return ok(
            "persistence",
            f"snapshots alone (save {saves!r}): a killed server loses what came after the last one",
        )
    return fail(
        "persistence",
        f"Redis keeps nothing on disk (appendonly no, save ''): a restart loses all {holds}",
        "Set appendonly yes",
    )


def warnings_for(client: Redis) -> list[str]:
    """Sentences about the server's settings, each with the setting and the fix; best is none.

    A server that hides its settings (`CONFIG` forbidden or renamed) is judged by `INFO` alone.
    """
    info: dict[str, Any] = client.info()
    found = [version(info), eviction(info)]
    with suppress(ResponseError):
        found.append(persistence(client, info))
    return [finding.sentence for finding in found if finding.verdict is not Verdict.OK]


def _saves(client: Redis) -> str:
    """The `save` setting: empty without RDB snapshots."""
    setting: str | bytes | None = client.config_get("save").get("save")
    return setting.decode() if isinstance(setting, bytes) else setting or ""
