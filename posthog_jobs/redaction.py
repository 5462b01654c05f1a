"""Keeps secrets out of what is logged, kept of failures, and shown of a config."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import AppConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: What is shown instead of a secret.
MASK: Final = "********"

#: A key with one of these in it is taken for a secret's where no schema says what is one.
_TELLING: Final = re.compile(
    "password|passwd|passphrase|secret|token|api[_-]?key|access_?key|private_?key|credential"
    "|authorization",
    re.IGNORECASE,
)

#: What is shown at most of a text, in characters: an exception may quote all that it was given.
LONGEST_TEXT: Final = 40_000

#: Shorter secrets are left alone: words of other texts would be torn apart.
MIN_SECRET_LENGTH: Final = 6

_FORMATTER: Final = logging.Formatter()

#: The fields of every record; of those only `stack_info` may quote what the code was about.
_PLAIN: Final = vars(logging.makeLogRecord({})).keys() - {"stack_info"}

_lock: Final = Lock()
_secrets: tuple[str, ...] = ()


def keep_secret(secrets: Iterable[str]) -> None:
    """Let `redact` replace these texts from now on, for as long as this process runs.

    Args:
        secrets: the texts; those of less than `MIN_SECRET_LENGTH` characters are left out.
    """
    global _secrets  # noqa: PLW0603  # swapped whole, so that readers need no lock
    with _lock:
        known = set(_secrets)
        for secret in secrets:
            if len(secret) >= MIN_SECRET_LENGTH:
                # also as repr and JSON write it, where a key's line ends are two characters each
                known |= {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]}
        # a secret may be a part of another one, of which nothing must be left over
        _secrets = tuple(sorted(known, key=len, reverse=True))


def redact(text: str) -> str:
    """Return a text with each secret in it replaced by a mask."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def showable(text: str) -> str:
    """Return a text without secrets; of one that is too long its beginning and its end."""
    text = redact(text)
    left_out = len(text) - LONGEST_TEXT
    if left_out <= 0:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]} […{left_out:,} characters are left out…] {text[-half:]}"


class SecretFilter(logging.Filter):
    """Takes secrets out of log records: message, arguments, further fields and traceback.

    Of what is too long to be read, it leaves the beginning and the end. A worker has it on
    Celery's handlers. Add it to handlers of your own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a record; it is always let through."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  # what logging would print of it has the arguments
            message = f"{record.msg} (its arguments do not fit)"
        clean = showable(message)
        if clean != message or _holds_secret(record.args):
            record.msg, record.args = clean, ()
        if isinstance(record.exc_info, tuple):
            text = record.exc_text or _FORMATTER.formatException(record.exc_info)
            clean = showable(text)
            if clean != text:  # without the exception, which another formatter would write
                record.exc_info, record.exc_text = None, clean
        for name in vars(record).keys() - _PLAIN:
            setattr(record, name, _redacted(getattr(record, name)))
        return True


def guard(log: logging.Logger) -> None:
    """Let no handler that a logger has now write a secret."""
    for handler in log.handlers:
        if not any(isinstance(known, SecretFilter) for known in handler.filters):
            handler.addFilter(SecretFilter())


def masked(key: object, value: Any) -> Any:
    """Return a value of which no schema tells anything, without what looks like a secret."""
    if _is_telling(key) and value not in (None, ""):
        return MASK
    if isinstance(value, Mapping):
        return {inner: masked(inner, part) for inner, part in value.items()}
    if isinstance(value, list):
        return [masked(None, part) for part in value]
    return value


def secret_texts(key: object, value: Any) -> Iterator[str]:
    """Yield the texts of what looks like a secret."""
    if _is_telling(key):
        yield from texts(value)
    else:
        for inner, part in _parts(value):
            yield from secret_texts(inner, part)


def texts(value: Any) -> Iterator[str]:
    """Yield each text in a value."""
    if isinstance(value, str):
        yield value
    for _, part in _parts(value):
        yield from texts(part)


def unmasked(value: Any, old: Any, what: str) -> Any:
    """Return a value with each mask in it replaced by what stood there.

    Args:
        value: what came back.
        old: what was shown masked; None: nothing.
        what: what to call it in messages.

    Raises:
        AppConfigError: a mask stands for nothing.
    """
    if value == MASK:
        if old is None:
            raise AppConfigError(f"{what} is a mask, but has no value that it stands for; set one")
        return old
    if isinstance(value, Mapping):
        before = old if isinstance(old, Mapping) else {}
        return {key: unmasked(part, before.get(key), what) for key, part in value.items()}
    if isinstance(value, list):
        parts = [*(old if isinstance(old, list) else []), *[None] * len(value)]
        return [unmasked(part, before, what) for part, before in zip(value, parts, strict=False)]
    return value


def _is_telling(key: object) -> bool:
    return isinstance(key, str) and _TELLING.search(key) is not None


def _parts(value: Any) -> Iterable[tuple[object, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return [(None, part) for part in value] if isinstance(value, list) else ()


def _holds_secret(arguments: Any) -> bool:
    parts = arguments.values() if isinstance(arguments, Mapping) else arguments or ()
    return any(isinstance(part, str) and redact(part) != part for part in parts)


def _redacted(value: Any) -> Any:
    """Return a field of a record with its texts showable, also in a dict, as Celery's `data` is."""
    if isinstance(value, str):
        return showable(value)
    if isinstance(value, dict):
        return {
            key: showable(part) if isinstance(part, str) else part for key, part in value.items()
        }
    return value
