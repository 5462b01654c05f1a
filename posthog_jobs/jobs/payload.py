"""What may travel, or be kept: checked, measured, and written as kombu's JSON, byte for byte.

The JSON is that of `kombu.utils.json`, so that any Celery reads it; a test compares the two.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from posthog_jobs.errors import PayloadError, PayloadTooLargeError, StoreValueError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Besides JSON's own: type → how it is marked, and what stands for a value of it. A datetime is a
#: date too, so the order counts.
_ENCODERS: Final[dict[type, tuple[str, Callable[[Any], object]]]] = {
    datetime: ("datetime", datetime.isoformat),
    date: ("date", lambda value: value.isoformat()),
    time: ("time", lambda value: value.isoformat()),
    Decimal: ("decimal", str),
    UUID: ("uuid", lambda value: {"hex": value.hex}),
}

_DECODERS: Final[dict[str, Callable[[Any], object]]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda parts: UUID(**parts),
    "bytes": lambda text: text.encode(),
    "base64": lambda text: base64.b64decode(text.encode()),
}

_CARRIED: Final = (int, bytes, *_ENCODERS)

#: A dict of just these keys is how the types above are marked; as data it would be decoded.
_MARKER_KEYS: Final = frozenset({"__type__", "__value__"})

#: What arrives equal whatever it holds. A value of a subclass, or with a time zone, is looked at.
_ALWAYS_EQUAL: Final = frozenset({str, int, float, Decimal, date, UUID, bytes})

_FIXES: Final[dict[type, str]] = {
    tuple: "use a list: a tuple would arrive as one",
    set: "use a sorted list",
    frozenset: "use a sorted list",
    bytearray: "use bytes(...)",
}

#: Deeper than any real payload, and far from what Python's own JSON decoder can nest.
MAX_DEPTH: Final = 200

MAX_KEY_BYTES: Final = 1024


def _marked(kind: str, value: object) -> dict[str, object]:
    return {"__type__": kind, "__value__": value}


def encode_other(value: Any) -> object:
    """Return what stands for a value that JSON has no word for; the `default` of `json.dumps`."""
    if (reduced := getattr(value, "__json__", None)) is not None:
        return reduced()
    for kind, (mark, encoded) in _ENCODERS.items():
        if isinstance(value, kind):
            return _marked(mark, encoded(value))
    if isinstance(value, bytes):
        try:
            return _marked("bytes", value.decode())
        except UnicodeDecodeError:
            return _marked("base64", base64.b64encode(value).decode())
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _decode_object(value: dict[str, Any]) -> object:
    if value.keys() != _MARKER_KEYS:
        return value
    decoder = _DECODERS.get(value["__type__"])
    if decoder is None:
        raise ValueError(f"a value is marked as {value['__type__']!r}, which is not a known type")
    return decoder(value["__value__"])


#: Writes a value as JSON; made once, since `json.dumps` makes one for each call.
dumps: Final[Callable[[object], str]] = json.JSONEncoder(default=encode_other).encode


def loads(text: str | bytes) -> Any:
    """Return what `dumps`, here or in kombu, made the text of."""
    if isinstance(text, bytes):
        text = text.decode()
    # to visit every object takes time
    return json.loads(text, object_hook=_decode_object if "__type__" in text else None)


def measure(payload: object, largest: int) -> int:
    """Return the size of a payload as JSON, in bytes.

    Args:
        payload: what shall travel, checked.
        largest: the setting `posthog_jobs_max_payload_bytes`.

    Raises:
        PayloadTooLargeError: it is larger.
    """
    size = len(dumps(payload))
    if size > largest:
        raise PayloadTooLargeError(
            f"the payload has {size} bytes as JSON, over the limit of {largest}; keep the data "
            "elsewhere and send where it is, or raise posthog_jobs_max_payload_bytes"
        )
    return size


def check_key(key: object) -> str:
    """Return a key of `meta.cache` or `meta.storage` that can be used.

    Raises:
        StoreValueError: it is not a string, or empty, over 1,024 bytes, or not Unicode.
    """
    if not isinstance(key, str):
        raise StoreValueError(f"a key is a string, not {type(key).__name__}; use str(key)")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise StoreValueError(f"the key {key!r} is not Unicode; remove its surrogates") from None
    if not 0 < size <= MAX_KEY_BYTES:
        raise StoreValueError(
            f"the key {key[:40]!r} has {size} bytes; use 1 to {MAX_KEY_BYTES} of them"
        )
    return key


def encode(value: object) -> str:
    """Return a value of `meta.cache` or `meta.storage` as JSON.

    Raises:
        StoreValueError: it holds what cannot be kept.
    """
    try:
        check_payload(value, "value")
    except PayloadError as error:
        raise StoreValueError(str(error)) from None
    return dumps(value)


def decode(text: str | bytes | None, default: object = None) -> Any:
    """Return the value that `encode` made the text of, or the default if there is none."""
    return default if text is None else loads(text)


def in_order(text: str | bytes) -> str:
    """Return what `encode` made with each object's keys sorted: the same for what is equal."""
    return json.dumps(json.loads(text), sort_keys=True)


def check_payload(value: object, root: str = "payload") -> None:
    """Check that a value can travel as JSON and arrive equal.

    Args:
        value: what shall travel.
        root: what a message calls the value itself; the path of a bad part starts with it.

    Raises:
        PayloadError: a part is of another type, not a number, not Unicode, nested too deep (or in
            itself), or would not arrive equal; the message names its path, such as
            `payload["items"][3]`.
    """
    _check(value, root, 0)


def _check(value: object, path: str, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth >= MAX_DEPTH:
            raise PayloadError(f"{path[:80]}… nests deeper than {MAX_DEPTH} levels, or in itself")
        if isinstance(value, dict):
            _check_dict(value, path, depth + 1)
        else:
            for index, item in enumerate(value):
                _check(item, f"{path}[{index}]", depth + 1)
    elif value is not None and not isinstance(value, bool):
        _check_leaf(value, path)


def _check_leaf(value: object, path: str) -> None:
    kind = type(value)
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PayloadError(f"{path} is {value}, for which JSON has no word; use None")
    elif isinstance(value, Decimal):
        if value.is_nan():
            raise PayloadError(f"{path} is Decimal('NaN'), which equals nothing; use None")
    elif not isinstance(value, _CARRIED):
        fix = _FIXES.get(kind, "use JSON values, datetime, date, time, UUID, Decimal or bytes")
        raise PayloadError(f"{path} is of type {kind.__name__}, which cannot travel; {fix}")
    if kind not in _ALWAYS_EQUAL and not _arrives_equal(value):
        raise PayloadError(
            f"{path} is of type {kind.__name__}, and what arrives would not be equal; use a "
            "string, or a value without what is lost: a datetime to the microsecond, a time with "
            "an offset"
        )


def _arrives_equal(value: Any) -> bool:
    try:
        arrived = loads(dumps(value))
        if isinstance(value, (datetime, time)):
            if (arrived.tzinfo is None) != (value.tzinfo is None):  # a zone's offset needs a date
                return False
            if arrived.utcoffset() != value.utcoffset():  # of less than a second
                return False
            # in one zone, since Python finds times of an hour that comes twice unequal across zones
            arrived = arrived.replace(tzinfo=value.tzinfo, fold=value.fold)
        return bool(arrived == value)
    except Exception:  # noqa: BLE001  # a class or a time zone that is not Python's own
        return False


def _check_text(text: str, path: str) -> None:
    try:
        str.encode(text)
    except UnicodeEncodeError:
        raise PayloadError(
            f"{path} holds surrogates, which are not Unicode text, and two of which would arrive "
            'as one character; use text.encode("utf-16", "surrogatepass").decode("utf-16", '
            '"replace"), or bytes'
        ) from None


def _check_dict(value: dict[object, object], path: str, depth: int) -> None:
    for key, item in value.items():
        if not isinstance(key, str):
            raise PayloadError(
                f"{path} has the key {str(key)[:40]!r} of type {type(key).__name__}; JSON's keys "
                "are strings, so use str(key)"
            )
        _check_text(key, f"the key {key[:40]!r} of {path}")
        _check(item, f"{path}[{key[:40]!r}]", depth)
    if value.keys() == _MARKER_KEYS:
        raise PayloadError(
            f"{path} has just the keys '__type__' and '__value__', which mark typed values on the "
            "wire; add or rename a key"
        )
    if type(value) is not dict and dict(value.items()) != value:
        raise PayloadError(
            f"{path} is of type {type(value).__name__}, whose items are not all that it holds; use "
            "a plain dict"
        )
