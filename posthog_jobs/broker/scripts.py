"""The Lua scripts: package data, sent once to a server and called by their hash afterwards."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError

from posthog_jobs.broker.envelope import FRAGMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis import Redis

    from posthog_jobs.broker.transport.connection import Connection

_LUA = files(__package__) / "lua"


class Script:
    """One Lua script.

    Args:
        name: its file in `lua/`, without the suffix.
        libraries: what goes in front of it, of the files there.
    """

    __slots__ = ("sha", "text")

    def __init__(self, name: str, libraries: tuple[str, ...] = ("schedule_lib",)) -> None:
        parts = (*libraries, name)
        self.text = "".join((_LUA / f"{part}.lua").read_text("utf-8") for part in parts)
        self.text = self.text.replace("--[[FRAGMENTS]]", _fragments())
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(
        self, client: Redis | Connection, keys: Sequence[str], args: Iterable[Any] = ()
    ) -> Any:
        """Run it, and return its reply. `client` must not prefix keys."""
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:  # a server that restarted, or that we never spoke to
            return client.execute_command("EVAL", self.text, len(keys), *keys, *args)


def _fragments() -> str:
    """`envelope.FRAGMENTS` as entries of a Lua table."""
    return ", ".join(
        f"['\\{ord(mark)}'] = '{_escape(fragment)}'" for mark, fragment in FRAGMENTS.items()
    )


def _escape(text: str) -> str:
    return "".join(char if char >= " " else f"\\{ord(char)}" for char in text)


CHANGE_APP: Final = Script("change_app", ())
BIND: Final = Script("bind", ())
ENQUEUE: Final = Script("enqueue", ())
BUFFER_EXPORT: Final = Script("buffer_export", ())
TAKE_EXPORT: Final = Script("take_export", ())
SCHEDULE: Final = Script("schedule")
TURN: Final = Script("turn")
PUT_BACK: Final = Script("put_back")
CANCEL: Final = Script("cancel")
CANCEL_SOME: Final = Script("cancel_some")
RESCHEDULE: Final = Script("reschedule")
PAGE: Final = Script("page")
FORECAST: Final = Script("forecast")

_FAILED = ("schedule_lib", "failed_lib")
FAIL: Final = Script("fail", _FAILED)
KEEP: Final = Script("keep", _FAILED)
REPLAY: Final = Script("replay", _FAILED)
DISCARD: Final = Script("discard", _FAILED)
TRIM: Final = Script("trim", _FAILED)
EXTREME: Final = Script("extreme", ())
