"""A payload of each kind that can travel, by name; what is not there is a call without one."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

PAYLOADS: dict[str, Any] = {
    "None": None,
    "true": True,
    "false": False,
    "zero": 0,
    "integer": -7,
    "large integer": 2**200,
    "float": 0.1,
    "empty string": "",
    "string": 'two\nlines, "quotes", back\\slash, \x01\x02\x0e and <tags>',
    "unicode": "Tee für zwei, 茶 ☕ \u202e",
    "list": [1, [2.5, None], {"three": ["x"]}, []],
    "dict": {"url": "https://kettle.example/?a=1&b=2", "": {}, "ключ": [True]},
    "datetime in UTC": datetime(2030, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
    "datetime elsewhere": datetime(2030, 7, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    "datetime without a zone": datetime(2030, 1, 1, 1, 2, 3),  # noqa: DTZ001  # it is carried
    "date": date(2028, 2, 29),
    "time": time(23, 59, 59, 1),
    "UUID": UUID("12345678-1234-5678-1234-567812345678"),
    "Decimal": Decimal("-12345678901234567890.000000000123456789"),
    "bytes": b"\x00\xff bytes",
    "typed in a dict": {"at": [date(2028, 2, 29), {"price": Decimal("1.10"), "raw": b""}]},
}
