"""The names of all Redis keys of this package; each starts with the broker's global_keyprefix.

An app id has no colon, so that no key of one installation can be spelt as another's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one prefix.

    Attributes:
        prefix: the transport option `global_keyprefix`, or nothing.
    """

    prefix: str = ""

    def cache(self, app_id: str, key: str) -> str:
        """One value or list of an installation's `meta.cache`."""
        return f"{self.prefix}posthog_jobs:cache:{app_id}:{key}"

    def storage(self, app_id: str) -> str:
        """The hash of all values of an installation's `meta.storage`."""
        return f"{self.prefix}posthog_jobs:storage:{app_id}"
