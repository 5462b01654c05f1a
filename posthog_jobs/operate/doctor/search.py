"""A search among all keys of the server, which may be many: it ends in time."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

#: Seconds that a search may take; a large cache has many keys.
LONGEST: Final = 2.0


def search(client: Any, prefix: str) -> tuple[set[str], bool]:
    """Return what follows the prefix in each key that has it, and whether all could be looked at.

    Args:
        client: of the server.
        prefix: what the keys begin with.
    """
    found: set[str] = set()
    until, cursor = monotonic() + LONGEST, 0
    pattern = "".join(f"\\{char}" if char in "\\*?[]^" else char for char in prefix)
    while monotonic() < until:
        cursor, names = client.scan(cursor, match=f"{pattern}*", count=1000)
        found.update(name.decode().removeprefix(prefix) for name in names)
        if not cursor:
            return found, True
    return found, False
