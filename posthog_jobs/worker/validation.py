"""What a task's message must look like before a worker takes it: anybody may have written it.

Nearly every message is of one shape, and each worker looks at each: so the looks are cheap.
"""

from __future__ import annotations

from datetime import MAXYEAR, MINYEAR
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

from celery import Celery, Task
from celery.app.task import Context
from celery.exceptions import InvalidTaskError
from kombu import Producer

from posthog_jobs.broker.envelope import APP_HEADER, DUE_HEADER
from posthog_jobs.broker.failure import is_word
from posthog_jobs.jobs.due import LAST_DUE

if TYPE_CHECKING:
    from celery.worker.request import Request

#: What a message may say beside the arguments, and of what type; None is always allowed.
_EMBEDDED: Final = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}
_NOTHING: Final = dict.fromkeys(_EMBEDDED)

#: What a task that is named there says beside its name, and of what type.
_SIGNATURE: Final = {"args": list, "kwargs": dict, "options": dict}

#: Headers that say what they are meant to by one type alone, or are None.
_TYPES: Final = (
    ("argsrepr", str),
    ("kwargsrepr", str),
    ("headers", dict),
    ("stamps", dict),
    ("stamped_headers", list),
)

#: The time limits, hard and soft, of nearly every message.
_NO_LIMITS: Final = ([None, None], (None, None))

#: The longest time limit, in seconds, and the most retries that a message may say.
_LONGEST_LIMIT: Final = 10**9
_MOST_RETRIES: Final = 10**9

#: The latest moment, in ms since the epoch.
_LAST_DUE: Final = LAST_DUE.timestamp() * 1000

#: How the names of our own tasks begin.
_OURS: Final = "posthog_jobs."

#: What decides where and how a task is sent: no stamp of a message may be named so.
_OPTIONS: Final = {
    *signature(Celery.send_task).parameters,
    *signature(Task.apply_async).parameters,
    *signature(Producer.publish).parameters,
    *Context().as_execution_options(),
    *("queue", "argsrepr", "kwargsrepr", "ignore_result", "stamped_headers"),
}


def check_task(request: Request) -> None:
    """Refuse a message that would end the consumer, hang in the pool, or forge a line of a log.

    Raises:
        InvalidTaskError: it is such a one.
    """
    headers, name, limits = request.request_dict, request.name, request.time_limits
    if not is_word(request.id) or not is_word(name):
        raise InvalidTaskError("the id or the name is no word")
    if name != request.type and name.startswith(_OURS):
        raise InvalidTaskError("its shadow is the name of a job")
    if type(request.args) not in (list, tuple) or type(request.kwargs) is not dict:
        raise InvalidTaskError("the arguments are of the wrong type")
    if limits not in _NO_LIMITS and not _are_limits(limits):
        raise InvalidTaskError("the time limits are of the wrong type")
    retries = headers.get("retries")
    if retries and not (type(retries) is int and 0 < retries <= _MOST_RETRIES):
        raise InvalidTaskError("the retries are no number of them")
    for header, kind in _TYPES:
        if (value := headers.get(header)) is not None and type(value) is not kind:
            raise InvalidTaskError(f"the header {header} is of the wrong type")
    if (stamped := headers.get("stamped_headers")) and not all(map(is_word, stamped)):
        raise InvalidTaskError("the stamps are of the wrong type")
    # in UTC it may be in no year at all; Celery would drop the message
    if (eta := request.eta) is not None and eta.year in (MINYEAR, MAXYEAR):
        raise InvalidTaskError("it is due at no time")
    _check_embedded(request.body[2], request.message.headers)


def check_job(request: Request) -> None:
    """Refuse a message of ours that would run, or be sent, otherwise than ours are.

    Raises:
        InvalidTaskError: it is such a one.
    """
    task, headers, args = request.task, request.request_dict, request.args
    if (due := headers.get(DUE_HEADER)) and not _is_number(due, _LAST_DUE):
        raise InvalidTaskError("it was due at no time")
    if not task.accepts(args, request.kwargs):
        raise InvalidTaskError(f"the arguments are not those of {task.name}")
    app_id = task.headers_of(args).get(APP_HEADER)
    if headers.get(APP_HEADER, app_id) != app_id or not (app_id is None or is_word(app_id)):
        raise InvalidTaskError("it is no app id, or the headers have another one")
    embed = request.body[2]
    if embed and embed != _NOTHING and any(map(embed.get, _EMBEDDED)):
        raise InvalidTaskError("a job's message can name no other tasks to run")
    if not _EMBEDDED.keys().isdisjoint(headers) and any(map(headers.get, _EMBEDDED)):
        raise InvalidTaskError("a job's message can name no other tasks to run")
    if (stamped := headers.get("stamped_headers")) and not _OPTIONS.isdisjoint(stamped):
        raise InvalidTaskError("a stamp has the name of an option")


def _check_embedded(embed: Any, outside: dict[str, Any]) -> None:
    if not _EMBEDDED.keys().isdisjoint(outside) and any(map(outside.get, _EMBEDDED)):
        raise InvalidTaskError("the callbacks stand where Celery would not put them")
    if not embed or embed == _NOTHING:
        return
    if not isinstance(embed, dict):
        raise InvalidTaskError("the callbacks are no object")
    for name, value in embed.items():  # all of them None, but for a canvas
        # another name would become one of the request's own attributes
        if not isinstance(value, _EMBEDDED.get(name, type(None)) | None):
            raise InvalidTaskError("the callbacks are of the wrong type")
        signatures: Any = value if isinstance(value, list) else filter(None, [value])
        if not all(map(_is_signature, signatures)):
            raise InvalidTaskError("a callback is no task")


def _is_signature(value: Any) -> bool:
    # Celery would find that out once the task has run, and is acknowledged
    return (
        isinstance(value, dict)
        and is_word(value.get("task"))
        and all(isinstance(value.get(name, kind()), kind) for name, kind in _SIGNATURE.items())
    )


def _are_limits(limits: object) -> bool:
    return (
        isinstance(limits, (list, tuple))
        and len(limits) == 2  # noqa: PLR2004  # hard and soft
        and all(limit is None or _is_number(limit, _LONGEST_LIMIT) for limit in limits)
    )


def _is_number(value: object, most: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= most  # type: ignore[operator]
