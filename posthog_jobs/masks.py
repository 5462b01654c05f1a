"""Masks: what is shown of a config instead of its secrets, and what comes back unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.declaration import is_empty
from posthog_jobs.errors import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What is shown instead of a secret.
MASK: Final = "********"

#: A key with one of these in it is taken for a secret's where no schema says what is one.
_TELLING: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "apikey",
    "api-key",
    "access_key",
    "accesskey",
    "private_key",
    "privatekey",
    "credential",
    "authorization",
)


def _is_telling(key: object) -> bool:
    return isinstance(key, str) and any(part in key.lower() for part in _TELLING)


def masked(key: object, value: Any) -> Any:
    """Return a value of which no schema tells anything, without what looks like a secret."""
    if _is_telling(key) and not is_empty(value):
        return MASK
    if isinstance(value, Mapping):
        return {inner: masked(inner, part) for inner, part in value.items()}
    if isinstance(value, list):
        return [masked(None, part) for part in value]
    return value


def told(key: object, value: Any) -> Iterator[str]:
    """Yield the texts of what looks like a secret."""
    if _is_telling(key):
        yield from texts(value)
    elif isinstance(value, Mapping):
        for inner, part in value.items():
            yield from told(inner, part)
    elif isinstance(value, list):
        for part in value:
            yield from told(None, part)


def texts(value: Any) -> Iterator[str]:
    """Yield each text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)


def unmasked(value: Any, old: Any, what: str) -> Any:
    """Return a value with each mask in it replaced by what stood there.

    Args:
        value: what came back.
        old: what was shown masked; None: nothing.
        what: what to call it in messages.

    Raises:
        AppConfigError: a mask stands for nothing.
    """
    if value == MASK:
        if old is None:
            raise AppConfigError(f"{what} is a mask, but has no value that it stands for; set one")
        return old
    if isinstance(value, Mapping):
        before = old if isinstance(old, Mapping) else {}
        return {key: unmasked(part, before.get(key), what) for key, part in value.items()}
    if isinstance(value, list):
        parts = [*(old if isinstance(old, list) else []), *[None] * len(value)]
        return [unmasked(part, before, what) for part, before in zip(value, parts, strict=False)]
    return value
