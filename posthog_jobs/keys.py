"""The names of all Redis keys of this package, in one place.

An app id has no colon, so that no key of one installation can be spelt as another's.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What every key of ours begins with, behind kombu's `global_keyprefix`.
PREFIX = "posthog_jobs:"


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one prefix.

    Args:
        global_keyprefix: kombu's transport option of that name.
    """

    global_keyprefix: str = ""

    @property
    def prefix(self) -> str:
        """What the scripts derive the other names from."""
        return f"{self.global_keyprefix}{PREFIX}"

    @property
    def fixed(self) -> list[str]:
        """KEYS[1-5] of every script but `enqueue.lua`, see `lua/schedule_lib.lua`."""
        prefix = self.prefix
        return [f"{prefix}{name}" for name in ("heads", "waiting", "keyed", "promoted", "leases")]

    @property
    def heads(self) -> str:
        """Sorted set: partition (app and job) → due time, in ms, of the first that waits there."""
        return f"{self.prefix}heads"

    @property
    def waiting(self) -> str:
        """Hash: id → record of what waits."""
        return f"{self.prefix}waiting"

    @property
    def leases(self) -> str:
        """Sorted set: owner of a lease → when it ends, in ms."""
        return f"{self.prefix}leases"

    @property
    def unreadable(self) -> str:
        """List of messages that are no JSON objects, kept for a person to look at."""
        return f"{self.prefix}unreadable"

    def due(self, partition: str) -> str:
        """Sorted set: id → due time, in ms, of what waits in a partition."""
        return f"{self.prefix}due:{partition}"

    def inflight(self, owner: str) -> str:
        """Hash: tag → queue and message of what a lease holds."""
        return f"{self.prefix}inflight:{owner}"

    def queue(self, queue: str) -> str:
        """The list of kombu for a queue and priority."""
        return f"{self.global_keyprefix}{queue}"

    def wake(self, queue: str | None = None) -> str:
        """List that sleeping workers wait on: of a queue and priority, or of the schedule."""
        return f"{self.prefix}wake" if queue is None else f"{self.prefix}wake:{self.queue(queue)}"

    def cache(self, app_id: str, key: str) -> str:
        """One value or list of an installation's `meta.cache`."""
        return f"{self.prefix}cache:{app_id}:{key}"

    def storage(self, app_id: str) -> str:
        """Hash: key → value of an installation's `meta.storage`."""
        return f"{self.prefix}storage:{app_id}"
