"""What a payload may hold: JSON's values, and the few more that kombu's JSON carries."""

from __future__ import annotations

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Final
from uuid import UUID

from posthog_jobs.errors import PayloadError

#: Besides JSON's own types and Decimal; each arrives equal (kombu.utils.json).
CARRIED_TYPES: Final = (datetime, date, time, UUID, bytes)

#: A dict of just these keys is how kombu marks the types above; as data it would be decoded.
_MARKER_KEYS: Final = frozenset({"__type__", "__value__"})

_FIXES: Final[dict[type, str]] = {
    tuple: "use a list: a tuple would arrive as one",
    set: "use a sorted list",
    frozenset: "use a sorted list",
    bytearray: "use bytes(...)",
}

#: Python's JSON refuses integers of more than 4,300 digits.
_MAX_INTEGER_BITS: Final = 14_000

#: Deeper than any real payload, and far from what Python's own JSON decoder can nest.
MAX_DEPTH: Final = 200


def check_payload(value: object, root: str = "payload") -> None:
    """Check that a value can travel as JSON and arrive equal.

    Args:
        value: what shall travel.
        root: what a message calls the value itself; the path of a bad part starts with it.

    Raises:
        PayloadError: a part is of another type, no number, or nested too deep (or in itself);
            the message names its path, such as `payload["items"][3]`.
    """
    _check(value, root, 0)


def _check(value: object, path: str, depth: int) -> None:
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, (int, float, Decimal)):
        _check_number(value, path)
    elif isinstance(value, (dict, list)):
        if depth >= MAX_DEPTH:
            raise PayloadError(f"{path[:80]}… nests deeper than {MAX_DEPTH} levels, or in itself")
        if isinstance(value, dict):
            _check_dict(value, path, depth + 1)
        else:
            for index, item in enumerate(value):
                _check(item, f"{path}[{index}]", depth + 1)
    elif not isinstance(value, CARRIED_TYPES):
        kind = type(value)
        fix = _FIXES.get(kind, "use JSON values, datetime, date, time, UUID, Decimal or bytes")
        raise PayloadError(f"{path} is of type {kind.__name__}, which cannot travel; {fix}")


def _check_number(value: float | Decimal, path: str) -> None:
    if isinstance(value, int):
        if value.bit_length() > _MAX_INTEGER_BITS:
            raise PayloadError(f"{path} is an integer of over 4,200 digits; send it as a string")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PayloadError(f"{path} is {value}, for which JSON has no word; use None")
    elif value.is_nan():
        raise PayloadError(f"{path} is Decimal('NaN'), which equals nothing; use None")


def _check_dict(value: dict[object, object], path: str, depth: int) -> None:
    for key, item in value.items():
        if not isinstance(key, str):
            raise PayloadError(
                f"{path} has the key {str(key)[:40]!r} of type {type(key).__name__}; JSON's keys "
                "are strings, so use str(key)"
            )
        _check(item, f"{path}[{key[:40]!r}]", depth)
    if value.keys() == _MARKER_KEYS:
        raise PayloadError(
            f"{path} has just the keys '__type__' and '__value__', which mark typed values on the "
            "wire; add or rename a key"
        )
