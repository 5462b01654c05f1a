"""What a Redis that answers refuses for now, and takes later: the same as a Redis that is away."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError  # noqa: A004

if TYPE_CHECKING:
    from redis import ConnectionPool

#: A code of Redis' that begins an error: of a command, of a transaction that was given up for it,
#: or, up to Redis 6, of a call in a script.
_REFUSAL: Final = re.compile(
    r"(?:^|because of: |: -)(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY"
    r"|TRYAGAIN|UNBLOCKED) .*"
)
#: What Redis says of where in a script it was.
_WHERE: Final = re.compile(r",? script: \w+, on @user_script:\d+\.?$")


class RefusedError(ConnectionError):
    """The server is full, busy, read-only or the like, and refuses until that is over.

    A connection's error: whoever waits for a server that is away waits for this one as well, and
    connects anew, for another server may have taken over.
    """


def refusal_of(error: Exception) -> str | None:
    """Return what an error of Redis says if it is a refusal for now; None for any other one."""
    code = getattr(error, "status_code", None)  # which redis-py cuts off the text
    text = f"{code} {error}" if code else str(error)
    return _WHERE.sub("", text).rstrip(".") if _REFUSAL.search(text) else None


def tell_refusals(pool: ConnectionPool) -> None:
    """Have each connection of a pool raise RefusedError where the server refuses for now."""

    class Connection(pool.connection_class):  # type: ignore[name-defined]
        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().read_response(*args, **kwargs)
            except (ResponseError, BusyLoadingError) as error:
                if (refusal := refusal_of(error)) is not None:
                    raise RefusedError(f"it refuses for now: {refusal}") from None
                raise

    pool.connection_class = Connection
