"""A file in an app's config, such as a key or a certificate."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from posthog_jobs.errors import AppConfigError

#: The largest attachment, in bytes: a config is kept whole on Redis and read by every process.
MAX_ATTACHMENT_BYTES: Final = 1024 * 1024

_FIELDS: Final = ("content_type", "file_name", "contents")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file that an operator gave to an installation.

    Attributes:
        content_type: its media type, such as `application/json`.
        file_name: the name that it had.
        contents: what is in it.
    """

    content_type: str
    file_name: str
    contents: bytes

    def __repr__(self) -> str:
        """Return it without its contents, which may be a secret."""
        return f"Attachment(<{self.file_name}, {len(self.contents)} bytes>)"

    @classmethod
    def read(cls, value: object, what: str) -> Attachment:
        """Read an attachment as a config holds it.

        Args:
            value: a mapping with `content_type`, `file_name` and `contents`, which are bytes, or
                a string of them in base64.
            what: what to call it in messages.

        Raises:
            AppConfigError: it is not an attachment, or its contents are over
                `MAX_ATTACHMENT_BYTES`.
        """
        if not isinstance(value, Mapping) or value.keys() != set(_FIELDS):
            raise AppConfigError(
                f"{what} is not an attachment; give it as a mapping with just the keys "
                f"{', '.join(_FIELDS)}"
            )
        for key in ("content_type", "file_name"):
            if not isinstance(value[key], str) or not value[key].isprintable():
                raise AppConfigError(f"{what}: {key!r} is not a text of one line; make it one")
        contents = value["contents"]
        if isinstance(contents, str):
            try:
                contents = base64.b64decode(contents, validate=True)
            except (binascii.Error, ValueError):
                raise AppConfigError(
                    f"{what}: 'contents' is not base64; encode the file with base64, or give bytes"
                ) from None
        if not isinstance(contents, bytes):
            raise AppConfigError(
                f"{what}: 'contents' is of type {type(contents).__name__}; give bytes, or base64 "
                "in a string"
            )
        if len(contents) > MAX_ATTACHMENT_BYTES:
            raise AppConfigError(
                f"{what} has {len(contents):,} bytes, and an attachment has at most "
                f"{MAX_ATTACHMENT_BYTES:,}; keep large files elsewhere and configure where"
            )
        return cls(
            content_type=value["content_type"], file_name=value["file_name"], contents=contents
        )

    def stored(self) -> dict[str, Any]:
        """Return it as a config keeps it, its contents in base64."""
        return {
            "content_type": self.content_type,
            "file_name": self.file_name,
            "contents": base64.b64encode(self.contents).decode("ascii"),
        }
