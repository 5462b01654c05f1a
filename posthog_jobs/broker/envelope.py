"""The envelope: how a message is laid out, on the wire, where it waits, and for a replay."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import zlib
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from posthog_jobs.errors import ConfigurationError, ReplayError
from posthog_jobs.jobs.due import milliseconds
from posthog_jobs.jobs.payload import encode_other
from posthog_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The tasks of hooks, by their names; those of ticks are `posthog_jobs.run_every_…`.
CAPTURE: Final = "posthog_jobs.capture"
ON_EVENT: Final = "posthog_jobs.on_event"
FLUSH_EXPORT: Final = "posthog_jobs.flush_export"
EXPORT_EVENTS: Final = "posthog_jobs.export_events"

#: Message headers of ours.
APP_HEADER = "posthog_jobs_app"
KEY_HEADER = "posthog_jobs_key"
IF_WAITING_HEADER = "posthog_jobs_if_waiting"
DUE_HEADER = "posthog_jobs_due"
#: When a message that was due at once was sent, in ms, by its sender's clock.
SENT_HEADER = "posthog_jobs_sent"
#: What a job raised at its last attempt, and the key that it waited under before that.
ERROR_HEADER = "posthog_jobs_error"
KEPT_KEY_HEADER = "posthog_jobs_kept_key"
#: The id of the failed job that a message is a replay of.
REPLAY_HEADER = "posthog_jobs_replay_of"
#: How often a message waited for its app; apart from Celery's count of the job's own retries.
WAITED_HEADER = "posthog_jobs_waited"
#: How often a message waited for the broker or a store, for which no policy counts.
AWAY_HEADER = "posthog_jobs_away"

#: What a delivery adds to a message, and what is not sent on with it.
_OF_DELIVERY: Final = (DUE_HEADER, SENT_HEADER, "redelivered")
#: What is kept of an error at most, in characters.
_LONGEST_ERROR: Final = 500
#: What a message says of earlier attempts, which a replay begins anew.
_OF_ATTEMPTS: Final = (ERROR_HEADER, WAITED_HEADER, AWAY_HEADER)

#: More than any payload nests (`posthog_jobs.jobs.payload`), with the lists and objects around it.
MAX_DEPTH = 220

#: Stand-ins for what most messages have in common; raw control characters cannot occur in JSON.
#: Messages wait for years in this form: fragments may be added, but none may change or go.
_ID, _TAG = "\x01", "\x02"
FRAGMENTS = {
    "\x03": '","content-encoding":"utf-8","content-type":"application/json","headers":{"lang":"py",'
    '"task":"',
    "\x04": '","id":"\x01","shadow":null,"eta":null,"expires":null,"group":null,"group_index":null,'
    '"retries":0,"timelimit":[null,null],"root_id":"\x01","parent_id":null,"argsrepr":"',
    "\x05": '"replaced_task_nesting":0,"stamped_headers":null,"stamps":{}',
    "\x06": '},"properties":{"correlation_id":"\x01","reply_to":"',
    "\x07": '"delivery_mode":2,"delivery_info":{"exchange":"","routing_key":"',
    "\x08": '"},"priority":0,"body_encoding":"base64","delivery_tag":"\x02"}}',
    "\x0e": "W10sIHt9LCB7ImNhbGxiYWNrcyI6IG51bGwsICJlcnJiYWNrcyI6IG51bGwsICJjaGFpbiI6IG51bGwsICJj"
    "aG9yZCI6IG51bGx9XQ==",  # the body of a call without arguments
}

#: Encodes a message as kombu does, without the spaces.
dumps: Final[Callable[[object], str]] = json.JSONEncoder(
    separators=(",", ":"), default=encode_other
).encode


def task_name(app_name: str, job_name: str) -> str:
    """Return the name of a job's task, as `task_routes` and Flower have it."""
    return f"posthog_jobs.{app_name}.{job_name}"


def parse_task_name(name: str) -> tuple[str, str] | None:
    """Return the app's and the job's name; None for a task that is not a job's."""
    match name.split("."):
        case ["posthog_jobs", app_name, job_name]:
            return app_name, job_name
    return None


def describe(app_id: object, size: int | None) -> str:
    """Return what logs and Flower show of a message's arguments."""
    return f"({app_id!r},)" if size is None else f"({app_id!r}, <{size} bytes>)"


def due_of(headers: Mapping[str, Any]) -> int | None:
    """When a message is due, in ms since the epoch; None for one without a readable `eta`.

    Rounded up, for nothing may run early. A naive `eta` is UTC, as Celery's own are.
    """
    eta = headers.get("eta")
    if not eta:
        return None
    try:
        moment = eta if isinstance(eta, datetime) else datetime.fromisoformat(eta)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return milliseconds(moment, "eta")
    except (TypeError, ValueError):
        return None  # Celery itself refuses it when the message arrives


def outgoing(message: dict[str, Any], now: int) -> tuple[int | None, list[Any]]:
    """Lay out a message that is to be sent.

    A message that is sent on has what an earlier delivery added, which goes. The message given
    gets headers of its own: kombu sends it again if this time fails.

    Args:
        message: what kombu made of it.
        now: the present, in ms since the epoch.

    Returns:
        When it is due, if it goes to the schedule, and what the script is told of it: that is
        `scheduled`, else the message alone.

    Raises:
        ConfigurationError: it is compressed with what workers do not unpack.
    """
    headers = _undelivered(message.get("headers") or {})
    if not can_inflate(compression := headers.get("compression", "gzip")):
        raise ConfigurationError(
            f"a message of {headers.get('task')!r:.200} is compressed with {compression!r:.60}, "
            f"which the workers of posthog_jobs do not unpack; let its task have {COMPRESSIONS}"
        )
    message = {**message, "headers": headers}
    due = due_of(headers)
    if KEY_HEADER in headers or (due is not None and due > now):
        return due or 0, scheduled(message, due or 0)
    if due is not None:
        headers[DUE_HEADER], headers["eta"] = due, None
    elif "task" in headers:
        headers[SENT_HEADER] = now
    return None, [dumps(message)]


def scheduled(message: Mapping[str, Any], due: int) -> list[Any]:
    """Return what `schedule.lua` is told of a message, ARGV[2-7]; it is due at so many ms."""
    headers = message["headers"]
    return [
        identity(message),
        due,
        partition_of(str(headers.get(APP_HEADER, "")), str(headers.get("task", ""))),
        str(headers.get(KEY_HEADER, "")),
        str(headers.get(IF_WAITING_HEADER, "replace")),
        pack(message),
    ]


def partition_of(app_id: str, job: str) -> str:
    """The part of the schedule that a job of an app waits in; two netstrings."""
    return netstrings(app_id, job)


def parse_partition(partition: str) -> tuple[str, str]:
    """The app id and the task name that a partition is for."""
    app_id, job = parse_netstrings(partition)
    return app_id, job


def netstrings(*parts: str) -> str:
    """Words joined so that they can be told apart, whatever they hold: `<bytes>:<word>…`."""
    return "".join(f"{len(part.encode())}:{part}" for part in parts)


def parse_netstrings(text: str) -> list[str]:
    """The words that `netstrings` joined."""
    rest, parts = text.encode(), []
    while rest:
        part, rest = take(rest)
        parts.append(part.decode())
    return parts


def pack(message: Mapping[str, Any]) -> str:
    """The message as it is stored: without its `eta`, its id and tag left out where they repeat.

    The message itself stays as it is: kombu sends it again if this time fails.
    """
    text = dumps({**message, "headers": {**message["headers"], "eta": None}})
    name = identity(message)
    if name.isascii() and name.isprintable() and '"' not in name and "\\" not in name:
        # JSON writes it as it is
        text = text.replace(f'"{name}"', f'"{_ID}"')
    tag = message["properties"]["delivery_tag"]
    text = text.replace(f'"delivery_tag":"{tag}"', f'"delivery_tag":"{_TAG}"')
    for mark, fragment in FRAGMENTS.items():
        text = text.replace(fragment, mark)
    return text


def unpack(text: bytes, task_id: str) -> bytes:
    """The message that `pack` made this text of, without a delivery tag."""
    for mark, fragment in FRAGMENTS.items():
        text = text.replace(mark.encode(), fragment.encode())
    return text.replace(_ID.encode(), task_id.encode()).replace(_TAG.encode(), b"")


def identity(message: Mapping[str, Any]) -> str:
    """The id that a message waits under: its task id, or its delivery tag if it is no task."""
    return str(message["headers"].get("id") or message["properties"]["delivery_tag"])


def body_of(message: Mapping[str, Any]) -> bytes:
    """The body of a message as its serializer made it: args, kwargs and callbacks."""
    body: str = message["body"]
    is_base64 = message["properties"].get("body_encoding") == "base64"
    data = base64.b64decode(body) if is_base64 else body.encode()
    compression = (message.get("headers") or {}).get("compression")
    return inflate(data, compression) if compression else data


def check_depth(raw: bytes, decoded: object) -> None:
    """Refuse what is nested too deep: it could be decoded, but not be handed to a pool's process.

    Args:
        raw: the text of it.
        decoded: what it says.

    Raises:
        ValueError: there are more than `MAX_DEPTH` lists and objects in each other.
    """
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    level = [decoded]
    for _ in range(MAX_DEPTH + 1):
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")


def is_to_blame(raw: object, error: Exception) -> bool:
    """Tell whether it is a message's fault that it was not read, and not that of who read it.

    Args:
        raw: its text, or its body.
        error: what reading it raised.
    """
    if isinstance(error, RecursionError):  # an app can set a low limit
        return isinstance(raw, bytes) and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH
    return not isinstance(error, MemoryError)


def check_shape(message: Any) -> None:
    """Refuse what kombu could not even make a message of.

    Raises:
        TypeError: a part of the message is of the wrong type; it is named.
    """
    if not isinstance(message, dict):
        raise TypeError(f"a message is a JSON object, not {type(message).__name__}")
    properties = message.get("properties")
    if not isinstance(properties, dict):
        raise TypeError("the message has no properties")
    for name, part in (
        ("headers", message.get("headers")),
        ("delivery_info", properties.get("delivery_info")),
    ):
        if part is not None and type(part) is not dict:
            raise TypeError(f"the message's {name} is no object")
    for name in ("body", "content-type", "content-encoding"):
        text = message.get(name)
        if text is not None and type(text) is not str:
            raise TypeError(f"the message's {name} is no string")


def check_command(message: Any) -> None:
    """Refuse what Celery's remote control would stumble over.

    Raises:
        TypeError: a part of it is of the wrong type.
        Exception: it cannot be decoded.
    """
    command = None if message.errors else message.decode()
    if (
        not isinstance(command, dict)
        or not isinstance(command.get("method"), str)
        or not isinstance(command.get("arguments"), dict | None)
        or not isinstance(command.get("destination"), list | None)
        or not isinstance(command.get("reply_to"), dict | None)
    ):
        raise TypeError("it is no command")


def take(data: bytes) -> tuple[bytes, bytes]:
    """The first netstring of some bytes, and what follows it."""
    size, _, rest = data.partition(b":")
    return rest[: int(size)], rest[int(size) :]


def parse_record(task_id: str, data: bytes) -> tuple[str, str, str, bytes]:
    """Read a value of the hash `waiting`; see `lua/schedule_lib.lua` for its layout.

    Returns:
        The queue's list, the partition, the key, which may be empty, and the message.
    """
    queue, data = take(data)
    partition, data = take(data)
    key, data = take(data)
    return queue.decode(), partition.decode(), key.decode(), unpack(data, task_id)


#: The largest body that a message may hold in compressed form, in bytes.
MAX_INFLATED: Final = 64 * 1024 * 1024


class _Inflater(Protocol):
    """What `zlib`, `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool:
        """Whether the end of the data was reached."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return what was compressed, up to a length."""


#: Such data says how much memory its reader shall set aside; as much as its highest level needs.
_LZMA: Final = partial(lzma.LZMADecompressor, memlimit=2 * MAX_INFLATED)

#: The names that `task_compression` and message headers have for them, in kombu.
_INFLATERS: Final[dict[str, Callable[[], _Inflater]]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), zlib.decompressobj),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), _LZMA),
}


#: What may be chosen of them, for those who choose another one.
COMPRESSIONS: Final = "gzip, bzip2 or lzma"


def can_inflate(compression: object) -> bool:
    """Tell whether workers unpack this compression."""
    return isinstance(compression, str) and compression in _INFLATERS


def inflate(data: bytes, compression: object) -> bytes:
    """Return a body as it was before it was compressed.

    Args:
        data: the compressed body.
        compression: what the message says that it is compressed with.

    Raises:
        ValueError: it is none of those above, the data is not of it, or holds too much.
    """
    make = _INFLATERS.get(compression) if isinstance(compression, str) else None
    if make is None:
        raise ValueError(
            "the body is compressed with what we do not unpack; set task_compression to "
            f"{COMPRESSIONS}"
        )
    inflater = make()
    try:
        body = inflater.decompress(data, MAX_INFLATED + 1)
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"the body is not compressed as it says: {error}") from None
    if len(body) > MAX_INFLATED or not inflater.eof:
        raise ValueError(f"the compressed body is cut off, or holds over {MAX_INFLATED} bytes")
    return body


def retry_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of a message that is made new for a retry.

    It has no key any more, under which another job may wait by now.
    """
    made = _undelivered(headers, KEY_HEADER, IF_WAITING_HEADER)
    return made if KEY_HEADER not in headers else {**made, KEPT_KEY_HEADER: headers[KEY_HEADER]}


def described(error: Exception) -> str:
    """Return what a waiting message says of the error before: its class and message, shortened."""
    text = redact(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]
    return text.encode("utf-8", "replace").decode()  # a lone surrogate could not be printed


def replay_message(message: dict[str, Any] | None, old_id: str, task_id: str) -> str:
    """Return a message under another id, with its attempts counted anew; its body stays.

    Args:
        message: that of a failed job, decoded; None if it cannot be read.
        old_id: the failed job's id.
        task_id: the id to send it under.

    Raises:
        ReplayError: it is not a message of a task.
    """
    headers = message.get("headers") if message is not None else None
    if message is None or not headers or not isinstance(headers.get("task"), str):
        raise ReplayError(f"{old_id} is not a message of a task; look at it, and discard it")
    headers = _undelivered(headers, KEY_HEADER, IF_WAITING_HEADER, *_OF_ATTEMPTS)
    if headers.get("root_id") in (old_id, None):
        headers["root_id"] = task_id
    headers |= {"id": task_id, "retries": 0, "eta": None, "expires": None, REPLAY_HEADER: old_id}
    info = {**(message["properties"].get("delivery_info") or {})}
    info.pop("redelivered", None)
    properties = {
        **message["properties"],
        "correlation_id": task_id,
        "delivery_tag": task_id,
        "delivery_info": info,
    }
    message = {name: part for name, part in message.items() if name != "redelivered"}
    return dumps({**message, "headers": headers, "properties": properties})


def _undelivered(headers: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Return headers without those that a delivery added, and without others."""
    dropped = (*_OF_DELIVERY, *others)
    return {name: value for name, value in headers.items() if name not in dropped}
