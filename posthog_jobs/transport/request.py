"""A task request that is decoded once."""

from __future__ import annotations

from typing import Any

from celery.worker import request


class Request(request.Request):
    """Celery's request, handing the pool the arguments that it has decoded already.

    Celery decodes a message's body when it arrives, and once more where the task runs. Set as
    `Task.Request`. What the task gets is the same: arguments that `self.request.args` shares.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._take_in()

    def _take_in(self) -> None:
        """Look at what has arrived; for subclasses, which need none of the arguments."""
        if not self._decoded:
            self._body = self._message.payload
            self._content_type = self._content_encoding = None
