"""A task request that is decoded once."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from celery.worker import request


class Request(request.Request):
    """Celery's request, handing the pool the arguments that it has decoded already.

    Celery decodes a message's body when it arrives, and once more where the task runs. Set as
    `Task.Request`. What the task gets is the same: arguments that `self.request.args` shares.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self._decoded:
            message, body = self._message, self._message.body
            if (
                message.content_type == "application/json"
                and isinstance(body, bytes)
                and b"__type__" not in body
            ):
                # kombu calls a function for each object, in search of typed values; what is no
                # JSON is left to it, which says so in its own way
                with suppress(ValueError, RecursionError):
                    message._decoded_cache = json.loads(body)
            self._body = message.payload
            self._content_type = self._content_encoding = None
