"""A message whose JSON is decoded the short way."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from kombu.transport import virtual


class Message(virtual.Message):
    """kombu's message; its decoder calls a function for each object, in search of typed values."""

    def _decode(self) -> Any:
        body = self.body
        if (
            self.content_type == "application/json"
            and isinstance(body, bytes)
            and b"__type__" not in body
        ):
            # what is no JSON is left to kombu, which says so in its own way
            with suppress(ValueError, RecursionError):
                return json.loads(body)
        return super()._decode()
