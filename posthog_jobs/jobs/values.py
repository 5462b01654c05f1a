"""Keys and values of `meta.cache` and `meta.storage`: what may be kept, and how it is written."""

from __future__ import annotations

from typing import Any, Final

from kombu.utils.json import dumps, loads

from posthog_jobs.errors import PayloadError, StoreKeyError, StoreValueError
from posthog_jobs.jobs.payload import check_payload

MAX_KEY_BYTES: Final = 1024


def check_key(key: object) -> str:
    """Return a key that can be used.

    Raises:
        StoreKeyError: it is no string, empty, over 1,024 bytes, or no valid Unicode.
    """
    if not isinstance(key, str):
        raise StoreKeyError(f"a key is a string, not {type(key).__name__}; use str(key)")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise StoreKeyError(f"the key {key!r} is no valid Unicode; remove its surrogates") from None
    if not 0 < size <= MAX_KEY_BYTES:
        raise StoreKeyError(
            f"the key {key[:40]!r} has {size} bytes; use 1 to {MAX_KEY_BYTES} of them"
        )
    return key


def encode(value: object) -> str:
    """Return a value as JSON, with a dict's keys in order.

    Raises:
        StoreValueError: it holds what JSON, as kombu writes it, does not carry.
    """
    try:
        check_payload(value, "value")
    except PayloadError as error:
        raise StoreValueError(str(error)) from None
    return str(dumps(value, sort_keys=True))


def decode(text: Any, default: object = None) -> Any:
    """Return the value that `encode` made the text of, or the default if there is none."""
    return default if text is None else loads(text)
