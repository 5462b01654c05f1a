"""A task request that is decoded once."""

from __future__ import annotations

from typing import Any

from celery.app.task import Context
from celery.worker import request

#: The headers that Celery's tasks have as attributes of `self.request`, or not at all.
_CELERYS = {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}


def has_request(message: Any) -> bool:
    """Tell whether a message, also one of RabbitMQ's, was read, and a request made of it."""
    return getattr(message, "is_requested", False)


class Request(request.Request):
    """Celery's request, handing the pool the arguments that it has decoded already.

    Celery decodes a message's body when it arrives, and once more where the task runs. Set as
    `Task.Request`. What the task gets is the same: arguments that `self.request.args` shares, and
    the headers of its own in `self.request.headers`, for which Celery looks in a longer way.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._take_in()
        self._message.is_requested = True

    def _take_in(self) -> None:
        """Look at what has arrived; for subclasses, which need none of the arguments."""
        if not self._decoded:
            self._body = self._message.payload
            self._content_type = self._content_encoding = None
        headers = self._request_dict
        if headers.get("headers") is None:
            headers["headers"] = {name: headers[name] for name in headers.keys() - _CELERYS} or None
